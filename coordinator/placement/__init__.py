"""Which VM should be on which host over the next hour."""
