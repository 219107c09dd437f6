"""What a run would need, before anything is rented: memory, disk, time. Nothing is loaded and nothing is allocated."""
