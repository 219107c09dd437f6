"""The runner of stages that work in parts: find unfinished parts, do them, show progress, check the result.

A stage describes its parts, their expected keys, how finished ones are found, and the steps that make them (`Parts`).
`run_parts` does the unfinished ones, on a Ray cluster or in this process, and checks that every key is there once.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from cirray.core.artifacts import Stage
from cirray.core.errors import CirrayError, DataError, GenerationError
from cirray.core.progress import progress
from cirray.pipelines.cluster.config import RayConfig
from cirray.pipelines.cluster.streaming import Columns, Step, stream
from cirray.types import part_name

_SHOWN = 20


@dataclass(frozen=True)
class Parts:
    """The work of one stage, cut into parts."""

    title: str
    """Title of the progress bar."""
    unit: str
    """Name of a part's rows, plural."""
    tables: Sequence[pa.Table]
    """One table a part, as `cut` makes them."""
    steps: Sequence[Step]
    """Steps of a part; the last one writes or returns it."""
    keys: Sequence[Collection[Any]] = ()
    """Expected keys of each part, including rejected ones."""
    found: Callable[[], Mapping[str, Sequence[Any]]] = dict
    """Finds the keys of finished parts, by `part_name`."""
    row_bytes: int = 1024
    """Largest size of a row between steps."""
    by: Callable[[Sequence[pa.Table], RayConfig], Iterator[Columns]] | None = None
    """What does the parts in place of `steps`, and gives the figures of each with its number."""
    signs: Callable[[], object] | None = None
    """What changes while a long part is worked on, where something does."""


@dataclass(frozen=True)
class Rejected:
    """Rejected items: name and reason of each."""

    rows: Sequence[tuple[str, str]]

    @classmethod
    def of(cls, table: pa.Table, name: str) -> "Rejected":
        """From a table with a column `reason`; `name` is the column that says what was rejected."""
        return cls(list(zip(table.column(name).to_pylist(), table.column("reason").to_pylist(), strict=True)))

    def __len__(self) -> int:
        """How many."""
        return len(self.rows)

    def first(self) -> list[list[str]]:
        """The first of them, for a manifest."""
        return [list(row) for row in self.rows[:_SHOWN]]

    def reasons(self) -> list[tuple[str, int]]:
        """Reasons and how often each was given, the most frequent first."""
        return Counter(reason for _, reason in self.rows).most_common()

    def refuse_all(self, stage: Stage, made: int, words: str, error: type[CirrayError] = DataError) -> None:
        """Throw the parts away when nothing was made.

        Args:
            stage: their stage.
            made: number of rows made.
            words: the error's message, with `{count}`, the most frequent `{reason}` and the first `{name}` in it.
            error: its class.

        Raises DataError or or the given error when `made` is 0.
        """
        if not made:
            stage.discard()
            reason = self.reasons()[0][0] if self.rows else "nothing was given"
            name = self.rows[0][0] if self.rows else ""
            raise error(words.format(count=len(self), reason=reason, name=name))


def cut(columns: pa.Table | Mapping[str, Sequence[Any]], rows: int) -> list[pa.Table]:
    """Cut columns into parts of `rows` rows; every row has its part's number (`part`) and size (`part_rows`)."""
    whole = columns if isinstance(columns, pa.Table) else pa.table(dict(columns))
    tables = []
    for number, start in enumerate(range(0, len(whole), rows)):
        part = whole.slice(start, rows).combine_chunks()
        for name, value in (("part_rows", len(part)), ("part", number)):
            part = part.add_column(0, name, pa.array([value] * len(part), pa.int64()))
        tables.append(part)
    return tables


def run_parts(stage: Stage, parts: Parts, ray: RayConfig) -> Counter[str]:
    """Do the unfinished parts, then check that every key is there once.

    Returns: Sums of the figures that the last step gave for each part made now.

    Raises GenerationError when keys are lost, repeated or unknown; CirrayError: raised by a step, or as in `stream`.
    """
    sums = Counter[str]()
    for figures in each_part(parts, ray, _finished(parts), stage.work_uri):
        sums.update({name: int(values[0]) for name, values in figures.items() if name not in ("part", "part_rows")})
    _account(parts, stage.work_uri)
    return sums


def each_part(parts: Parts, ray: RayConfig, finished: Collection[int] = (), work_uri: str = "") -> Iterator[Columns]:
    """Results of the last step for every unfinished part, in any order; shows the progress.

    Raises DataError when parts get lost on the way; CirrayError: raised by a step, or as in `stream`.
    """
    sizes = [len(table) for table in parts.tables]
    left = {number: table for number, table in enumerate(parts.tables) if number not in finished}
    with progress(parts.title, sum(sizes), parts.unit) as advance:
        advance(sum(sizes[number] for number in finished), "finished before" if finished else "", earlier=True)
        part_bytes = max(sizes, default=0) * parts.row_bytes
        undone, begin, tokens = list(left.values()), time.perf_counter(), 0
        stepwise = partial(stream, undone, parts.steps, ray, part_bytes, work_uri, parts.signs)
        for columns in parts.by(undone, ray) if parts.by else stepwise():
            yield columns
            tokens += int(columns["tokens_out"][0]) if "tokens_out" in columns else 0
            told = f"{tokens / (time.perf_counter() - begin):,.0f} tokens/s" if tokens else ""
            advance(len(left.pop(int(columns["part"][0]), ())), told)
    if left:
        raise DataError(f"{len(left)} of {len(sizes)} parts did not come back, e.g. number {min(left)}; run again.")


def _finished(parts: Parts) -> set[int]:
    """Parts with exactly their expected keys."""
    found = parts.found()
    return {
        number for number, keys in enumerate(parts.keys)
        if (name := part_name(number)) in found and Counter(found[name]) == Counter(keys)
    }  # fmt: skip


def _account(parts: Parts, where: str) -> None:
    wanted = Counter(key for keys in parts.keys for key in keys)
    found = Counter(key for keys in parts.found().values() for key in keys)
    for what, odd in (
        ("lost", wanted - found),
        ("unknown", found.keys() - wanted.keys()),
        ("doubled", found - wanted),
    ):
        if odd:
            key = min(odd)
            raise GenerationError(
                f"{len(odd)} of {wanted.total()} rows are {what} in {where!r}, e.g. "
                f"{': '.join(key) if isinstance(key, tuple) else key!r}. Delete that folder and run again; if it "
                "happens twice, report it."
            )
