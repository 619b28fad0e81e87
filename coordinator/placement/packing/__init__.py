"""Vectors into as few equal bins as hold them."""
