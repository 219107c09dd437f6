"""Floor 3: pure loss functions, one idea a file."""
