"""Named filters of triplets; each gives a reason for every row it drops. All are off by default.

The papers filter nothing (docs/PAPERS.md#pairs-and-filters).
"""

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from cirray.core.registry import Registry
from cirray.triplets.config import FilterConfig
from cirray.triplets.seen import Seen

Judge = Callable[[pa.Table], list[str | None]]
"""Takes a triplets artifact piece by piece, in order: for every row a reason to drop it, or None."""
Filter = Callable[[FilterConfig], Judge]

FILTERS: Registry[Filter] = Registry("triplet filter")
"""Filter name -> function that makes its judge."""


def triplet_filter(config: FilterConfig) -> Judge:
    """The configured filters as one: a row's first reason. Each filter sees the rows that those before it keep.

    Raises ConfigError for an unknown filter name.
    """
    judges = [(name, FILTERS.get(name)(config)) for name in config.names]

    def judge(table: pa.Table) -> list[str | None]:
        reasons: list[str | None] = [None] * len(table)
        for name, one in judges:
            kept = [row for row, reason in enumerate(reasons) if reason is None]
            for row, reason in zip(kept, one(table.take(pa.array(kept, pa.int64()))), strict=True):
                reasons[row] = f"{name}: {reason}" if reason else None
        return reasons

    return judge


@FILTERS.register("empty")
def empty(config: FilterConfig) -> Judge:
    """Texts without a letter or digit."""
    return lambda table: [None if words else "the text says nothing" for words in _words(table)]


@FILTERS.register("over_long")
def over_long(config: FilterConfig) -> Judge:
    """Texts of more than `max_words` words."""

    def judge(table: pa.Table) -> list[str | None]:
        counts = (len(text.split()) for text in table.column("modification").to_pylist())
        return [f"{count} words, at most {config.max_words}" if count > config.max_words else None for count in counts]

    return judge


@FILTERS.register("instruction_copy")
def instruction_copy(config: FilterConfig) -> Judge:
    """Texts that repeat the generator's instruction instead of answering it."""
    (asked,) = _words(pa.table({"modification": [config.instruction]}))
    return lambda table: ["repeats the instruction" if asked and asked in text else None for text in _words(table)]


@FILTERS.register("duplicate_text")
def duplicate_text(config: FilterConfig) -> Judge:
    """Texts that the same reference has already; with another target one of the two must be wrong."""
    seen = Seen()

    def judge(table: pa.Table) -> list[str | None]:
        first = seen.fresh(zip(table.column("reference_id").to_pylist(), _words(table), strict=True))
        return [None if new else "an earlier row has the same reference and text" for new in first.tolist()]

    return judge


@FILTERS.register("near_duplicate_pair")
def near_duplicate_pair(config: FilterConfig) -> Judge:
    """Pairs whose cosine exceeds `max_score`: two views of one picture have no change to describe."""

    def judge(table: pa.Table) -> list[str | None]:
        scores = (dict(item).get("pair", 0.0) for item in table.column("scores").to_pylist())
        most = config.max_score
        return [f"cosine {score:.3f} above {most}" if score > most else None for score in scores]

    return judge


def _words(table: pa.Table) -> list[str]:
    """Every text in small letters, its letters and digits with one space between words."""
    texts = pc.replace_substring_regex(pc.utf8_lower(table.column("modification")), r"[^\p{L}\p{N}]+", " ")
    return pc.utf8_trim_whitespace(texts).to_pylist()
