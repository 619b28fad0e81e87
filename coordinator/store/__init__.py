"""What lasts: write-ahead log of samples, history (Parquet), registry (SQL)."""
