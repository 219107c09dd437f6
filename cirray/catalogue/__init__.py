"""Floor 4: a gallery that lives: its table (Lance) is the source of truth, the index in memory its fast copy."""
