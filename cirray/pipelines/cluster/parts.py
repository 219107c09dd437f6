"""One runner for every stage that works in parts: what is left to do, the work, its progress, and the account of it.

A stage says what its parts are, what each must give, how finished ones are found, and which steps make them (`Parts`).
`run_parts` does what an earlier start has not finished, on a Ray cluster or in this process, and sees that in the end
every key is there once. What is then made of the parts is the stage's own business.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
    """Words for the progress bar."""
    unit: str
    """What a row of a part is, in the plural."""
    tables: Sequence[pa.Table]
    """One table a part, as `cut` makes them."""
    steps: Sequence[Step]
    """What happens to a part; the last step writes it, or returns it."""
    keys: Sequence[Collection[Any]] = ()
    """What each part must give; a key that failed and says why counts too."""
    found: Callable[[], Mapping[str, Sequence[Any]]] = dict
    """Looks up which keys the finished parts hold, by `part_name`."""
    row_bytes: int = 1024
    """Largest size of a row on its way from step to step."""


@dataclass(frozen=True)
class Rejected:
    """What gave nothing: name and reason of each."""

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
            stage: where they lie.
            made: how many rows were.
            words: what to tell then, with `{count}`, the most frequent `{reason}` and the first `{name}` in it.
            error: its class.

        Raises:
            DataError, or the given error: when `made` is 0.
        """
        if not made:
            stage.discard()
            reason = self.reasons()[0][0] if self.rows else "nothing was given"
            name = self.rows[0][0] if self.rows else ""
            raise error(words.format(count=len(self), reason=reason, name=name))


def cut(columns: pa.Table | Mapping[str, Sequence[Any]], rows: int) -> list[pa.Table]:
    """Columns as parts of so many rows, each with its number (`part`) and its size (`part_rows`) in every row."""
    whole = columns if isinstance(columns, pa.Table) else pa.table(dict(columns))
    tables = []
    for number, start in enumerate(range(0, len(whole), rows)):
        part = whole.slice(start, rows).combine_chunks()
        for name, value in (("part_rows", len(part)), ("part", number)):
            part = part.add_column(0, name, pa.array([value] * len(part), pa.int64()))
        tables.append(part)
    return tables


def run_parts(stage: Stage, parts: Parts, ray: RayConfig) -> Counter[str]:
    """Do what an earlier start has not finished, then count that every key is there once.

    Args:
        stage: where the parts are written.
        parts: the work.
        ray: a cluster, or this process.

    Returns:
        Sums of the figures that the last step gave for each part made now.

    Raises:
        GenerationError: when keys are lost, doubled or unknown.
        CirrayError: what a step raised; `stream` says what else.
    """
    sums = Counter[str]()
    for figures in each_part(parts, ray, _finished(parts), stage.work_uri):
        sums.update({name: int(values[0]) for name, values in figures.items() if name not in ("part", "part_rows")})
    _account(parts, stage.work_uri)
    return sums


def each_part(parts: Parts, ray: RayConfig, finished: Collection[int] = (), work_uri: str = "") -> Iterator[Columns]:
    """What the last step returns for every part that is not finished, in any order; shows the progress.

    Args:
        parts: the work.
        ray: a cluster, or this process.
        finished: numbers of parts to leave out.
        work_uri: where parts are written, if anywhere; every machine must see it.
    """
    sizes = [len(table) for table in parts.tables]
    left = [table for number, table in enumerate(parts.tables) if number not in finished]
    with progress(parts.title, sum(sizes), parts.unit) as advance:
        advance(sum(sizes[number] for number in finished), "finished before" if finished else "", earlier=True)
        for columns in stream(left, parts.steps, ray, max(sizes, default=0) * parts.row_bytes, work_uri):
            yield columns
            advance(sizes[int(columns["part"][0])])


def _finished(parts: Parts) -> set[int]:
    """Parts that hold what they must, and nothing else."""
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
