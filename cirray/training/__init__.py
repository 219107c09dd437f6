"""Floor 5: the one training loop, its engines, sampler, checkpoints and tasks."""
