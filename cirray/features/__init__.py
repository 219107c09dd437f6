"""Floor 2: memory-mapped feature shards keyed by encoder and transform digests."""
