"""Floor 7: `cirray VERB`, one verb a file."""
