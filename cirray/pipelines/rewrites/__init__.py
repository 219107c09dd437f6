"""CIReVL's second step: a language model rewrites caption and modification of every query into one caption."""
