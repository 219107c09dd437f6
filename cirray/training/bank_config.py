"""Configuration of the negative bank (SPN's second stage). No torch."""

from typing import Any, Literal

from pydantic import Field

from cirray.core.config import Config
from cirray.core.fields import Effort, Place


class BankConfig(Config):
    """All training images as negatives, encoded once by the frozen target side."""

    trains: Literal["query_side", "second_pass"] = "query_side"
    """What of a Q-Former retriever is trained, on a copy apart from the frozen target side: the whole query side
    (improved), or its second, text-only pass alone behind the frozen first one (paper)."""
    duplicate_cosine: float | None = Field(0.98, gt=-1, le=1)
    """Hide bank images whose cosine with the own target is above this (improved); null hides none (paper)."""
    mask_same_image: bool = True
    """Hide images whose features equal the own target's to the byte: one picture under two ids."""
    mask_known: bool = False
    """Hide the other targets of triplets with the same reference and text."""
    neg_num: int | None = Field(None, ge=1)
    """So many negatives of the bank per query, drawn anew each step; null: all."""
    extra_ids: Place = ""
    """A text file of further image ids for the bank, one a line; their features must be there."""
    half: bool = False
    """Keep the bank in fp16: half the memory, cosines to three digits."""
    sharded: Effort[bool | Literal["auto"]] = "auto"
    """Each worker holds a share of the rows; auto: where the whole bank is above `replicate_gb`."""
    replicate_gb: Effort[float] = Field(1.0, gt=0)
    """Size up to which every worker holds the whole bank."""
    chunk: Effort[int] = Field(4096, ge=1)
    """Bank rows per block of scores."""
    learn_temperature: bool = False
    """Let the bank's loss train the temperature; false keeps the start's, or that of `temperature`."""
    temperature_clamp: tuple[float, float] | None = (0.01, 0.1)
    """Range of a learned temperature, or null for a free one (paper)."""


PAPER: dict[str, Any] = {
    "trains": "second_pass", "duplicate_cosine": None, "mask_same_image": False, "learn_temperature": True,
    "temperature_clamp": None,
}  # fmt: skip
"""Fields of the paper's mode (docs/PAPERS.md#negative-bank)."""
