"""What a run would need: memory, disk, time. Nothing is loaded or allocated."""
