"""One file a revision, rNNNN_WHAT.py. A released one is never changed: what it made is out there."""
