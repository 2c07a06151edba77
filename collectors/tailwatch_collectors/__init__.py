"""Tailwatch's trainer-side SDK."""
