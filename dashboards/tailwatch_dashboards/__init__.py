"""Figures and pages of Tailwatch."""
