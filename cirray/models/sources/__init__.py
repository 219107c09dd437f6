"""Published checkpoints in Hugging Face layout: which files, which names, and the models they start."""
