"""Scheduled events: what the calendar announces, what such events did before, and what the next one will therefore do."""
