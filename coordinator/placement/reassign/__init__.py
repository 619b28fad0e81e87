"""Machine reassignment (ROADEF 2012): processes that already run somewhere, moved all at once."""
