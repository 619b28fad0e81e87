"""Consolidation tick by tick, as CloudSim's experiment asks for it."""
