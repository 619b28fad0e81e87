"""The host's side of Tidegate: sample, derive, guard, act, verify, journal, ship. Never imports `coordinator`."""
