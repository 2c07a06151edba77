"""The read side and the management of runs: JSON routes under /api/v1, the live stream, and the pages."""
