"""Telling others of alerts: what an Alertmanager or a webhook is sent, and how it gets there without loss."""
