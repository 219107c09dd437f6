"""Stages that train retrievers: pretraining, fine-tuning, sweeps."""
