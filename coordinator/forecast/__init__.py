"""Demand history to calibrated distributions of the next hour."""
