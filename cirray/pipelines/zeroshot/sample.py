"""A random part of a triplets artifact, some rows with wrong texts, for studies of scale and quality."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cirray.core.artifacts import Manifest, open_stage
from cirray.core.errors import DataError
from cirray.core.seeding import numpy_generator
from cirray.core.unfinished import stage_function
from cirray.pipelines.zeroshot.config import SampleRun
from cirray.triplets.schema import REJECTED_SCHEMA
from cirray.triplets.store import KIND, TripletStore, regrouped, write_part
from cirray.types import part_name

_TEXT, _REVERSE = "modification", "reverse_modification"


@stage_function
def run_sample(run: SampleRun) -> Manifest:
    """Write the sample, piece by piece; a smaller one is part of every larger one of the same seed.

    Returns: Manifest of kind "triplets"; counts `triplets` and `shuffled` (rows with another row's text).

    Raises DataError when the artifact has fewer rows than asked for.
    """
    stage = open_stage(run, KIND)
    if stage.finished:
        return stage.finished
    store = TripletStore.open(run.triplets)
    rows = store.splits()["train"]
    if run.count is not None and run.count > rows:
        stage.discard()
        raise DataError(f"{run.triplets!r} has {rows:,} training rows; count {run.count:,} asks for more.")
    drawn_M = np.zeros(rows, bool)
    drawn_M[numpy_generator(run.seed, "sampled triplets").permutation(rows)[: run.count]] = True
    wrong_M = drawn_M & (numpy_generator(run.seed, "shuffled rows").random(rows) < run.shuffled)
    texts = _exchanged(store, wrong_M, run)
    for number, table in enumerate(regrouped(_sampled(store, drawn_M, wrong_M, texts, run))):
        write_part(stage.work_uri, part_name(number), table, REJECTED_SCHEMA.empty_table())
    counts = {"triplets": int(drawn_M.sum()), "shuffled": len(texts)}
    return stage.publish(counts, {}, dict(store.manifest.extra))


def _training(store: TripletStore, columns: tuple[str, ...] = ()) -> Iterator[tuple[pa.Table, slice]]:
    """The training rows, a piece at a time, and which of all training rows they are."""
    start = 0
    for piece in store.pieces((*columns, "split") if columns else ()):
        table = piece.filter(pc.equal(piece.column("split"), "train"))
        yield table, slice(start, start + len(table))
        start += len(table)


def _exchanged(store: TripletStore, wrong_M: np.ndarray, run: SampleRun) -> pa.Array:
    """Texts for the wrong rows, in the rows' order: each takes that of the next one in a random circle, so that none
    keeps its own.
    """
    pieces = _training(store, (_TEXT,)) if wrong_M.any() else ()
    chunks = [chunk for table, rows in pieces for chunk in table.column(_TEXT).filter(pa.array(wrong_M[rows])).chunks]
    own, place = pa.chunked_array(chunks, pa.string()).combine_chunks(), np.empty(int(wrong_M.sum()), np.int64)
    circle = numpy_generator(run.seed, "exchanged texts").permutation(len(own))
    place[circle] = np.roll(circle, -1)
    return own.take(pa.array(place))


def _sampled(
    store: TripletStore, drawn_M: np.ndarray, wrong_M: np.ndarray, texts: pa.Array, run: SampleRun
) -> Iterator[pa.Table]:
    """The drawn rows, a piece at a time, with their new texts; beside one of them no reverse text is right."""
    used = 0
    for table, rows in _training(store):
        wrong = wrong_M[rows]
        taken, used = texts.slice(used, int(wrong.sum())), used + int(wrong.sum())
        new = pc.replace_with_mask(table.column(_TEXT).combine_chunks(), pa.array(wrong), taken)
        if run.template:
            new = pa.repeat(run.template, len(table))
        table = table.set_column(table.schema.get_field_index(_TEXT), table.schema.field(_TEXT), new)
        if len(texts) or run.template:
            at = table.schema.get_field_index(_REVERSE)
            table = table.set_column(at, table.schema.field(_REVERSE), pa.nulls(len(table), pa.string()))
        yield table.filter(pa.array(drawn_M[rows]))
