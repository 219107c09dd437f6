"""Stages of zero-shot composed retrieval: a small CLIP, the mapping stage, and samples of triplets for studies."""
