"""Sizes to ordered steps with receipts."""
