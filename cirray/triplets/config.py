"""Configuration of triplet filters. No torch."""

from typing import Annotated

from pydantic import Field

from cirray.core.config import Config
from cirray.core.fields import Known

FILTER_NAMES = ("empty", "over_long", "instruction_copy", "duplicate_text", "near_duplicate_pair")
"""Filters of this package."""


class FilterConfig(Config):
    """Filters of generated rows; a row that fails one is moved to the rejected rows with the reason."""

    names: tuple[Annotated[str, Known(*FILTER_NAMES)], ...] = ()
    """Filters, in the order in which a row goes through them."""
    max_words: int = Field(25, ge=1)
    """Longest text that `over_long` lets pass (32 word-pieces are about 25 words)."""
    instruction: str = ""
    """The generator's instruction, which `instruction_copy` looks for in the text."""
    max_score: float = Field(0.94, le=1.0)
    """Cosine of the pair above which `near_duplicate_pair` drops the row."""
