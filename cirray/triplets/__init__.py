"""Floor 2: the triplet schema, its Parquet store and filters. No torch."""
