"""Rewriters: a caption and a modification become the caption of the image that is wanted (CIReVL)."""
