"""What came of it: forecast errors, SLA, outcomes."""
