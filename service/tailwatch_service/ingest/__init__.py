"""Ingest: what trainers send, from the request to the pipeline and to storage."""
