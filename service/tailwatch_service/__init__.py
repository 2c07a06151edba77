"""Tailwatch service."""
