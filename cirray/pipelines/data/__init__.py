"""Stages that read or check data sets: the embedded world, `doctor`."""
