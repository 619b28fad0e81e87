"""One file per claim: each bench prints a table and writes JSON (see bench/report.py). Timings live here, never in tests."""
