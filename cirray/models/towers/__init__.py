"""Frozen vision towers, one backbone a file."""
