"""Alerts: the life of an incident, what it says, and how it reaches people."""
