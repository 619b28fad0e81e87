"""Samples to 5-minute demand: usage with the effect of limits taken out."""
