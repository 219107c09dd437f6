"""Rerankers: the first answers of a search, scored again by something slower that looks at each of them."""
