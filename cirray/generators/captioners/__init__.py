"""Captioners: image -> one short text, one kind a file, chosen by name."""
