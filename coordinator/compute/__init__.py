"""Where forecasts and solves run: Ray or this process."""
