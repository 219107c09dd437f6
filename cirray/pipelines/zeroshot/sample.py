"""A random part of a triplets artifact, some rows with wrong texts, for studies of scale and quality."""

import numpy as np
import pyarrow as pa

from cirray.core.artifacts import Manifest, open_stage
from cirray.core.errors import DataError
from cirray.core.seeding import numpy_generator
from cirray.core.unfinished import stage_function
from cirray.pipelines.zeroshot.config import SampleRun
from cirray.triplets.schema import REJECTED_SCHEMA
from cirray.triplets.store import KIND, TripletStore, write_part

_TEXT, _REVERSE = "modification", "reverse_modification"


@stage_function
def run_sample(run: SampleRun) -> Manifest:
    """Write the sample; a smaller one is part of every larger one of the same seed.

    Returns: Manifest of kind "triplets"; counts `triplets` and `shuffled` (rows with another row's text).

    Raises DataError when the artifact has fewer rows than asked for.
    """
    stage = open_stage(run, KIND)
    if stage.finished:
        return stage.finished
    store = TripletStore.open(run.triplets)
    table = store.table(split="train")
    if run.count is not None and run.count > len(table):
        stage.discard()
        raise DataError(f"{run.triplets!r} has {len(table):,} training rows; count {run.count:,} asks for more.")
    rng = numpy_generator(run.seed, "sampled triplets")
    order = rng.permutation(len(table))[: run.count]
    table = table.take(pa.array(order))
    wrong = np.flatnonzero(numpy_generator(run.seed, "shuffled rows").random(len(table)) < run.shuffled)
    table = _texts(table, wrong, run)
    rejected = pa.table({name: [] for name in REJECTED_SCHEMA.names}, schema=REJECTED_SCHEMA)
    write_part(stage.work_uri, "part-00000", table, rejected)
    counts = {"triplets": len(table), "shuffled": len(wrong)}
    return stage.publish(counts, {}, dict(store.manifest.extra))


def _texts(table: pa.Table, wrong: np.ndarray, run: SampleRun) -> pa.Table:
    texts = table.column(_TEXT).to_pylist()
    # each chosen row takes the next one's text, so none keeps its own
    for place, row in enumerate(wrong):
        texts[row] = table.column(_TEXT)[int(wrong[(place + 1) % len(wrong)])].as_py()
    if run.template:
        texts = [run.template] * len(texts)
    changed = table.set_column(table.schema.get_field_index(_TEXT), table.schema.field(_TEXT), pa.array(texts))
    if not len(wrong) and not run.template:
        return changed
    none = pa.nulls(len(table), table.schema.field(_REVERSE).type)
    return changed.set_column(table.schema.get_field_index(_REVERSE), table.schema.field(_REVERSE), none)
