"""Engines that search: greedy, annealing, shards, genetic."""
