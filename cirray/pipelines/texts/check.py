"""Stage 4b: keep the generated triplets that a base retriever confirms (round trip, direction), or weight them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cirray.core import storage
from cirray.core.artifacts import Manifest, Stage, open_stage
from cirray.core.errors import GenerationError
from cirray.core.unfinished import stage_function
from cirray.evaluation.round_trip import twins
from cirray.pipelines.cluster.parts import Cut, Parts, run_parts
from cirray.pipelines.cluster.streaming import Step
from cirray.pipelines.evaluation.gallery import GALLERY, gallery_parts
from cirray.pipelines.texts.checking import VERDICT_SCHEMA, VERDICTS, CheckTexts
from cirray.pipelines.texts.config import CheckRun
from cirray.pipelines.texts.judging import text_accuracy
from cirray.triplets.schema import REJECTED_SCHEMA, TRIPLET_SCHEMA, refused_rows
from cirray.triplets.store import DATA, KIND, TripletStore, each_table, row_counts, write_part
from cirray.types import part_name

_NUMBERED = 1_000_000
"""Triplets whose images are numbered together."""


@stage_function
def run_check(run: CheckRun) -> Manifest:
    """Write the triplets that pass; the others become rejected rows with their rank, or rows of a smaller weight.

    The model's work is done in parts by a pool of actors, or in this process (`ray`, `ray_from`), and a killed run goes
    on with those that are left. This process holds numbers alone: some 60 bytes a triplet.

    Returns:
        Manifest of kind "triplets"; counts `triplets` (kept), `rejected` (by the check alone), or `lowered`; metrics as
        `generate`'s.

    Raises ArtifactError: an input is missing; IndexMismatchError: the features are of another vision tower than the
    checkpoint's; GenerationError when no row passes.
    """
    stage = open_stage(run, KIND, kept=(f"{GALLERY}/*", f"{VERDICTS}/*"))
    if stage.finished:
        return stage.finished
    store = TripletStore.open(run.triplets)
    store.refuse_doubled()
    ends = EndsOf.read(store)
    ray = run.ray.model_copy(update={"enabled": run.ray.enabled and len(store) >= run.ray_from})
    if "rank" in run.tests:
        run_parts(stage, gallery_parts(stage, ends.images, _shared(run, stage), run.pool), ray)
    run_parts(stage, text_parts(run, stage, ends), ray)
    return finish(run, stage, store, ends)


@dataclass(frozen=True)
class EndsOf:
    """Both images of every triplet, as int32 rows of all images `[n]`; the images' ids, ascending."""

    images: pa.Array
    reference: np.ndarray
    target: np.ndarray

    @classmethod
    def read(cls, store: TripletStore) -> "EndsOf":
        """Number the images."""
        images = store.images(negatives=False)
        found = {name: np.empty(len(store), np.int32) for name in ("reference", "target")}
        start = 0
        for piece in store.pieces(("reference_id", "target_id"), _NUMBERED):
            for name, places in found.items():
                places[start : start + len(piece)] = pc.index_in(piece.column(f"{name}_id"), images).to_numpy()
            start += len(piece)
        return cls(images, found["reference"], found["target"])


def text_parts(run: CheckRun, stage: Stage, ends: EndsOf) -> Parts:
    """The triplets, whose ranks and margins a pool of models writes."""
    settings = _shared(run, stage) | {"triplets": run.triplets, "part_rows": run.part_rows, "tests": run.tests}
    tables = Cut({"reference": ends.reference, "target": ends.target}, run.part_rows)

    def found() -> Iterator[tuple[str, pa.Array]]:
        names = storage.list_files(storage.join(stage.work_uri, VERDICTS))
        counts = row_counts(stage.work_uri, VERDICTS)
        parts = (name.removesuffix(".parquet") for name in names)
        return ((part, _whole(part, rows)) for part, rows in zip(parts, counts, strict=True))

    def keys(part: pa.Table) -> pa.Array:
        return _whole(part_name(part.column("part")[0].as_py()), len(part))

    return Parts("check texts", "triplets", tables, [Step(CheckTexts, settings, run.pool)], keys, found)


def finish(run: CheckRun, stage: Stage, store: TripletStore, ends: EndsOf) -> Manifest:
    """Part the triplets by their verdicts, and publish. Raises GenerationError when no row passes."""
    judged = Judged.of(run, stage.work_uri, ends)
    weighted, starts = run.failing == "weight", range(0, len(store), run.part_rows)
    if not weighted and not judged.passed.any():
        stage.discard()
        why = judged.reasons(slice(0, 1))[0] if len(store) else "it holds none"
        raise GenerationError(
            f"No triplet of {run.triplets!r} passes {' and '.join(run.tests)}; the first one: {why}. Raise "
            f"top_k, ask less, or use a better base checkpoint than {run.checkpoint!r}."
        )
    for number, start in enumerate(starts):
        rows, table = slice(start, start + run.part_rows), store.at(start, run.part_rows)
        kept = _lowered(table, judged.factors[rows]) if weighted else table.filter(pa.array(judged.passed[rows]))
        refused = REJECTED_SCHEMA.empty_table() if weighted else refused_rows(table, judged.reasons(rows))
        write_part(stage.work_uri, part_name(number), kept, refused)
    failed = int(len(store) - judged.passed.sum())
    counts = {"triplets": len(store), "rejected": 0, "lowered": failed}
    if not weighted:
        counts = {"triplets": len(store) - failed, "rejected": failed}
    for folder in (GALLERY, VERDICTS):
        storage.remove(storage.join(stage.work_uri, folder))
    metrics = text_accuracy(each_table(stage.work_uri, DATA, TRIPLET_SCHEMA), run.judge) if run.judge else {}
    return stage.publish(counts, metrics, dict(store.manifest.extra))


_WORDS = {
    "rank": "round trip: its target is number {:,}, not among the first {}",
    "outrank": "outrank: its target is not nearer to the query than its own reference",
    "direction": "direction: the text leads rather from target to reference",
}


@dataclass(frozen=True)
class Judged:
    """What the tests say of every triplet `[n]`; with `both` the worse of a triplet and its twin."""

    verdicts: dict[str, np.ndarray]
    """Test -> rank, or margin."""
    top_k: int

    @classmethod
    def of(cls, run: CheckRun, work_uri: str, ends: EndsOf) -> "Judged":
        """Read the verdicts of all parts."""
        asked: list[str] = sorted(run.tests, key=lambda name: name != "rank")
        tables = each_table(work_uri, VERDICTS, VERDICT_SCHEMA)
        rows = pa.concat_tables(
            [VERDICT_SCHEMA.empty_table().select(asked), *(table.select(asked) for table in tables)]
        )
        found = {name: rows.column(name).to_numpy() for name in asked}
        if run.both:
            other = twins(ends.reference, ends.target)
            worse = {name: np.maximum if name == "rank" else np.minimum for name in asked}
            found = {name: worse[name](values, values[other]) for name, values in found.items()}
        return cls(found, run.top_k)

    @property
    def passed(self) -> np.ndarray:
        """Whether it passes every test."""
        return np.logical_and.reduce([self._passes(name, values) for name, values in self.verdicts.items()])

    @property
    def factors(self) -> np.ndarray:
        """The factor of its weight: the least of the tests', 1 where it passes."""
        found = (
            np.minimum(1.0, self.top_k / (values + 1.0)) if name == "rank" else np.exp(np.minimum(values, 0.0))
            for name, values in self.verdicts.items()
        )
        return np.minimum.reduce([*found])

    def reasons(self, rows: slice) -> list[str | None]:
        """The first test that each of some rows fails, in words; None where it passes."""
        reasons: list[str | None] = [None] * len(next(iter(self.verdicts.values()))[rows])
        for name, values in self.verdicts.items():
            for row in np.flatnonzero(~self._passes(name, values[rows])).tolist():
                reasons[row] = reasons[row] or _WORDS[name].format(int(values[rows][row]) + 1, self.top_k)
        return reasons

    def _passes(self, name: str, values: np.ndarray) -> np.ndarray:
        return values < self.top_k if name == "rank" else values > 0


def _shared(run: CheckRun, stage: Stage) -> dict[str, object]:
    """Settings of both actors."""
    where = {"checkpoint": run.checkpoint, "features": run.features, "work_uri": stage.work_uri}
    return {**where, "batch": run.batch, "device": run.pool.device}


def _whole(name: str, rows: int) -> pa.Array:
    """The one key of a part: it has so many rows."""
    return pa.array([f"{name}: {rows} rows"])


def _lowered(table: pa.Table, factors: np.ndarray) -> pa.Table:
    """The rows with their weights times the factors."""
    at = table.schema.get_field_index("weight")
    weights = pa.array(table.column("weight").to_numpy() * factors)
    return table.set_column(at, table.schema.field("weight"), weights)
