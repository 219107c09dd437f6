"""The runner of stages that work in parts: find unfinished parts, do them, show progress, check the result.

A stage describes its parts, their expected keys, how finished ones are found, and the steps that make them (`Parts`).
`run_parts` does the unfinished ones, on a Ray cluster or in this process, and checks that every key is there once.
Rows and keys are Arrow columns, compared part by part, so that a stage's memory is that of its table.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cirray.core.artifacts import Stage
from cirray.core.errors import CirrayError, DataError, GenerationError
from cirray.core.progress import progress
from cirray.pipelines.cluster.answers import forget
from cirray.pipelines.cluster.config import RayConfig
from cirray.pipelines.cluster.streaming import Columns, Step, stream
from cirray.triplets.store import KEY_MARK, row_keys
from cirray.types import part_name

_SHOWN = 20


@dataclass(frozen=True)
class Parts:
    """The work of one stage, cut into parts."""

    title: str
    """Title of the progress bar."""
    unit: str
    """Name of a part's rows, plural."""
    tables: "Cut"
    """The rows, a table a part."""
    steps: Sequence[Step]
    """Steps of a part; the last one writes or returns it."""
    keys: Callable[[pa.Table], pa.Array] = partial(row_keys, columns=("image_id",))
    """Expected keys of a part's rows, including rejected ones."""
    found: Callable[[], Iterable[tuple[str, pa.Array]]] = tuple
    """Finds finished parts: `part_name` and keys of each."""
    row_bytes: int = 1024
    """Largest size of a row between steps."""
    by: Callable[[Sequence[pa.Table], RayConfig], Iterator[Columns]] | None = None
    """What does the parts in place of `steps`, and gives the figures of each with its number."""


class Cut:
    """Rows cut into parts, which are made when asked for; every row has its part's number (`part`) and size
    (`part_rows`).
    """

    def __init__(self, columns: pa.Table | Mapping[str, Sequence[Any]], rows: int) -> None:
        """Cut columns into parts of `rows` rows."""
        self.table = (columns if isinstance(columns, pa.Table) else pa.table(dict(columns))).combine_chunks()
        self._rows = rows

    def __len__(self) -> int:
        return -(-len(self.table) // self._rows)

    def __iter__(self) -> Iterator[pa.Table]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> pa.Table:
        part = self.table.slice(number * self._rows, self._rows)
        for name, value in (("part_rows", len(part)), ("part", number)):
            part = part.add_column(0, name, pa.repeat(pa.scalar(value, pa.int64()), len(part)))
        return part


class Rejected:
    """How many items were rejected, the first of them, and how often each reason was given."""

    def __init__(self, rows: Iterable[tuple[str, str]]) -> None:
        """Count (name, reason) of each."""
        self._rows, self._first = Counter[str](), list[list[str]]()
        for name, reason in rows:
            self._rows[reason] += 1
            if len(self._first) < _SHOWN:
                self._first.append([name, reason])

    @classmethod
    def of(cls, tables: Iterable[pa.Table], name: str) -> "Rejected":
        """Count the rows of tables with a column `reason`; `name` is the column that says what was rejected."""
        columns = ([table.column(column).to_pylist() for column in (name, "reason")] for table in tables)
        return cls(row for names, reasons in columns for row in zip(names, reasons, strict=True))

    def __len__(self) -> int:
        """How many."""
        return self._rows.total()

    def first(self) -> list[list[str]]:
        """The first of them, for a manifest."""
        return self._first

    def reasons(self) -> list[tuple[str, int]]:
        """Reasons and how often each was given, the most frequent first."""
        return sorted(self._rows.items(), key=lambda row: (-row[1], row[0]))

    def refuse_all(self, stage: Stage, made: int, words: str, error: type[CirrayError] = DataError) -> None:
        """Throw the parts away when nothing was made.

        Args:
            stage: their stage.
            made: number of rows made.
            words: the error's message, with `{count}`, the most frequent `{reason}` and the first `{name}` in it.
            error: its class.

        Raises DataError or the given error when `made` is 0.
        """
        if not made:
            stage.discard()
            reason = self.reasons()[0][0] if len(self) else "nothing was given"
            name = self._first[0][0] if len(self) else ""
            raise error(words.format(count=len(self), reason=reason, name=name))


def run_parts(stage: Stage, parts: Parts, ray: RayConfig) -> Counter[str]:
    """Do the unfinished parts, then check that every key is there once.

    Returns: Sums of the figures that the last step gave for each part made now.

    Raises GenerationError when keys are lost, repeated or unknown; CirrayError: raised by a step, or as in `stream`.
    """
    sums = Counter[str]()
    for figures in each_part(parts, ray, finished(parts)[0], stage.work_uri):
        sums.update({name: int(values[0]) for name, values in figures.items() if name not in ("part", "part_rows")})
    account(parts, stage.work_uri)
    forget(stage.work_uri)
    return sums


def each_part(parts: Parts, ray: RayConfig, done: Collection[int] = (), work_uri: str = "") -> Iterator[Columns]:
    """Results of the last step for every part that is not `done`, in any order; shows the progress.

    Raises DataError when parts get lost on the way; CirrayError: raised by a step, or as in `stream`.
    """
    rows, left = len(parts.tables.table), {n: table for n, table in enumerate(parts.tables) if n not in done}
    with progress(parts.title, rows, parts.unit) as advance:
        undone, begin, tokens = list(left.values()), time.perf_counter(), 0
        advance(rows - sum(map(len, undone)), "finished before" if done else "", earlier=True)
        part_bytes = max(map(len, undone), default=0) * parts.row_bytes
        stepwise = partial(stream, undone, parts.steps, ray, part_bytes, work_uri)
        for columns in parts.by(undone, ray) if parts.by else stepwise():
            yield columns
            tokens += int(columns["tokens_out"][0]) if "tokens_out" in columns else 0
            told = f"{tokens / (time.perf_counter() - begin):,.0f} tokens/s" if tokens else ""
            advance(len(left.pop(int(columns["part"][0]), ())), told)
    if left:
        raise DataError(
            f"{len(left)} of {len(parts.tables)} parts did not come back, e.g. number {min(left)}; run again."
        )


def finished(parts: Parts) -> tuple[set[int], bool]:
    """Parts with exactly their expected keys, and whether something else is there."""
    numbers, others = {part_name(number): number for number in range(len(parts.tables))}, False
    whole = set[int]()
    for name, keys in parts.found():
        number = numbers.get(name)
        if number is not None and _sorted(parts.keys(parts.tables[number])).equals(_sorted(keys)):
            whole.add(number)
        else:
            others = True
    return whole, others


def account(parts: Parts, where: str) -> None:
    """Check that every expected key is there once. Raises GenerationError: keys are lost, repeated or unknown."""
    whole, others = finished(parts)
    if len(whole) == len(parts.tables) and not others:
        return
    wanted = [_counted(parts.keys(table), wanted=1, found=0) for table in parts.tables]
    counts = pa.concat_tables(wanted + [_counted(keys, wanted=0, found=1) for _, keys in parts.found()])
    sums = counts.group_by("key").aggregate([("wanted", "sum"), ("found", "sum")])
    asked, there = sums.column("wanted_sum"), sums.column("found_sum")
    for what, odd in (
        ("lost", pc.less(there, asked)),
        ("unknown", pc.equal(asked, 0)),
        ("doubled", pc.greater(there, asked)),
    ):
        if count := pc.sum(odd).as_py():
            key = pc.min(sums.column("key").filter(odd)).as_py()
            raise GenerationError(
                f"{count} of {pc.sum(asked).as_py()} rows are {what} in {where!r}, e.g. "
                f"{key.replace(KEY_MARK, ': ') if KEY_MARK in key else repr(key)}. Delete that folder and run again; "
                "if it happens twice, report it."
            )


def _sorted(keys: pa.Array) -> pa.Array:
    return keys.take(pc.sort_indices(keys))


def _counted(keys: pa.Array, **counts: int) -> pa.Table:
    columns = {name: pa.repeat(pa.scalar(count, pa.int64()), len(keys)) for name, count in counts.items()}
    return pa.table({"key": keys, **columns})
