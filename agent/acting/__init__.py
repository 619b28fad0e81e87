"""What may change on the host and how: guard, step machine, reactive rule, journal."""
