"""Floor 4: which image pairs are worth a text."""
