"""Named filters of triplets; each gives a reason for every row it drops. All are off by default.

The papers filter nothing (docs/PAPERS.md#pairs-and-filters).
"""

from collections.abc import Callable

import pyarrow as pa

from cirray.core.registry import Registry
from cirray.triplets.config import FilterConfig

Filter = Callable[[pa.Table, FilterConfig], list[str | None]]

FILTERS: Registry[Filter] = Registry("triplet filter")
"""Filter name -> function of a triplet table: for every row a reason, or None to keep it."""


def apply_filters(table: pa.Table, config: FilterConfig) -> list[str | None]:
    """First reason of the configured filters for every row, or None; each filter sees the rows kept so far.

    Raises ConfigError for an unknown filter name.
    """
    filters = [(name, FILTERS.get(name)) for name in config.names]
    reasons: list[str | None] = [None] * len(table)
    for name, function in filters:
        kept = [row for row, reason in enumerate(reasons) if reason is None]
        for row, reason in zip(kept, function(table.take(pa.array(kept, pa.int64())), config), strict=True):
            reasons[row] = f"{name}: {reason}" if reason else None
    return reasons


@FILTERS.register("empty")
def empty(table: pa.Table, config: FilterConfig) -> list[str | None]:
    """Texts without a letter or digit."""
    texts = table.column("modification").to_pylist()
    return [None if any(char.isalnum() for char in text) else "the text says nothing" for text in texts]


@FILTERS.register("over_long")
def over_long(table: pa.Table, config: FilterConfig) -> list[str | None]:
    """Texts of more than `max_words` words."""
    counts = [len(text.split()) for text in table.column("modification").to_pylist()]
    return [f"{count} words, at most {config.max_words}" if count > config.max_words else None for count in counts]


@FILTERS.register("instruction_copy")
def instruction_copy(table: pa.Table, config: FilterConfig) -> list[str | None]:
    """Texts that repeat the generator's instruction instead of answering it."""
    instruction = _words(config.instruction)
    texts = [_words(text) for text in table.column("modification").to_pylist()]
    return ["repeats the instruction" if instruction and instruction in text else None for text in texts]


@FILTERS.register("duplicate_text")
def duplicate_text(table: pa.Table, config: FilterConfig) -> list[str | None]:
    """Texts that the same reference has already; with another target one of the two must be wrong."""
    seen: dict[tuple[str, str], str] = {}
    reasons: list[str | None] = []
    columns = [table.column(name).to_pylist() for name in ("triplet_id", "reference_id", "modification")]
    for row_id, reference, text in zip(*columns, strict=True):
        first = seen.setdefault((reference, _words(text)), row_id)
        reasons.append(None if first == row_id else f"same reference and text as {first}")
    return reasons


@FILTERS.register("near_duplicate_pair")
def near_duplicate_pair(table: pa.Table, config: FilterConfig) -> list[str | None]:
    """Pairs whose cosine exceeds `max_score`: two views of one picture have no change to describe."""
    scores = [dict(item).get("pair", 0.0) for item in table.column("scores").to_pylist()]
    return [f"cosine {score:.3f} above {config.max_score}" if score > config.max_score else None for score in scores]


def _words(text: str) -> str:
    return " ".join("".join(char if char.isalnum() else " " for char in text.lower()).split())
