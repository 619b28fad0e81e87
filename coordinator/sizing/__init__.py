"""Demand distributions to what each VM should get on its host."""
