"""Stages that make triplets: mining, the generator, generation, checks."""
