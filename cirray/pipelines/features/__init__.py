"""Stages of the frozen towers and their features."""
