"""Checkpoint files of others, and models as folders for others."""
