"""What both sides of Tidegate speak: units, time, domain types, plans, wire messages, configuration.

Nothing here imports `agent` or `coordinator`.
"""
