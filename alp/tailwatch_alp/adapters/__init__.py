"""One thin file per framework; each is handed the framework's objects and imports nothing of it."""
