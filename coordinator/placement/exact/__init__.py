"""Proofs and bounds: CP-SAT, HiGHS, linear relaxations, patterns."""
