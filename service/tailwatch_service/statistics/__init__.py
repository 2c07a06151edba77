"""Statistics: summaries in, metrics out. Pure; knows neither FastAPI nor storage."""
