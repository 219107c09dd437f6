"""Floor 3: image pair -> modification text."""
