"""Stages of search: the index and one query."""
