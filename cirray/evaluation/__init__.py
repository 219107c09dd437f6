"""Floor 5: metrics with named protocols, reports with pictures."""
