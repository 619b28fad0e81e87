"""`tidegate` as an operator's tool: commands that speak with a running coordinator over its HTTP API, and nothing else of it."""
