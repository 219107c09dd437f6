"""Texts of a generator's held-out pairs: by this process, or of many pairs in parts by a pool of actors."""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import pyarrow as pa
import torch

from cirray.core import storage
from cirray.core.artifacts import Stage
from cirray.core.config import validate
from cirray.core.environ import enter_folder, working_folder
from cirray.data.readers import read_dataset
from cirray.features.store import FeatureLookup
from cirray.generators.config import TRAINABLE
from cirray.generators.trainable import TrainableGenerator
from cirray.pipelines.cluster.config import PoolConfig
from cirray.pipelines.cluster.parts import Cut, Parts, run_parts
from cirray.pipelines.cluster.streaming import Columns, Step
from cirray.pipelines.texts.actors import as_generation
from cirray.pipelines.texts.config import GeneratorRun
from cirray.pipelines.texts.generator_inputs import build_generator, features_of
from cirray.triplets.pairs import pair_table, to_pairs
from cirray.triplets.store import row_keys
from cirray.types import Generation, Pair, part_name

TEXTS = "heldout"
"""Folder of a stage's parts while it works; below it one for each state of the weights."""
_WEIGHTS = "weights.pt"


def write_texts(
    run: GeneratorRun, stage: Stage | None, model: TrainableGenerator, pairs: Sequence[Pair], features: FeatureLookup
) -> list[Generation]:
    """Texts of pairs in both directions, in their order; in a stage from `ray_from` pairs on by actors.

    Raises GenerationError when parts are lost; CirrayError: raised by an actor, or as in `run_parts`.
    """
    if stage is None or run.ray is None or not run.ray.enabled or len(pairs) < run.ray_from:
        return TRAINABLE.get(run.generator.kind).writer(model, run.decoding).generate(pairs, features)
    weights = packed(model)
    folder = storage.join(stage.work_uri, TEXTS, hashlib.blake2b(weights, digest_size=8).hexdigest())
    storage.write_bytes(storage.join(folder, _WEIGHTS), weights)
    pool = PoolConfig(size=run.ray.num_workers, cpus=run.ray.cpus_per_worker, gpus=float(run.ray.use_gpu))
    settings = {"device": pool.device, "run": run.to_dict(), "uri": folder, "folder": working_folder()}
    parts = Parts(
        "write held-out texts", "pairs", Cut(pair_table(pairs), run.part_rows),
        [Step(WriteTexts, settings, pool)], partial(row_keys, columns=("pair_id",)), partial(_found, folder),
    )  # fmt: skip
    run_parts(stage, parts, run.ray)
    made = [item for number in range(len(parts.tables)) for item in _read(folder, part_name(number))]
    storage.remove(folder)
    return made


class WriteTexts:
    """Actor: texts of one part's pairs, written as one file."""

    def __init__(self, device: str, run: dict[str, Any], uri: str, folder: str) -> None:
        """Load the language model, and the weights below `uri`; `folder` is where the driver works."""
        enter_folder(folder)
        self._run, self._uri = validate(GeneratorRun, run), uri
        model = build_generator(self._run, device)
        state = torch.load(io.BytesIO(storage.read_bytes(storage.join(uri, _WEIGHTS))), "cpu", weights_only=True)
        model.load_tuned(state)
        self._writer = TRAINABLE.get(self._run.generator.kind).writer(model, self._run.decoding)
        self._dataset = None if self._run.features else read_dataset(self._run.data)
        self._features = None if self._dataset else features_of(self._run, None, ())

    def __call__(self, columns: Columns) -> dict[str, int]:
        """Write the texts of one part (the fields of `Pair`)."""
        number, pairs = int(columns["part"][0]), to_pairs(columns)
        images = sorted({image for pair in pairs for image in (pair.reference_id, pair.target_id)})
        features = self._features or features_of(self._run, self._dataset, images)
        rows = [asdict(made) for made in self._writer.generate(pairs, features)]
        storage.write_bytes(storage.join(self._uri, f"{part_name(number)}.json"), json.dumps(rows).encode())
        return {"pairs": len(rows)}


def packed(model: TrainableGenerator) -> bytes:
    """The weights that training changes, as `load_tuned` takes them once they are loaded."""
    stream = io.BytesIO()
    torch.save(model.tuned_state(), stream)
    return stream.getvalue()


def _found(folder: str) -> Iterator[tuple[str, pa.Array]]:
    for file in storage.list_files(folder):
        if file.endswith(".json"):
            name = file.removesuffix(".json")
            yield name, pa.array([item.pair_id for item in _read(folder, name)], pa.string())


def _read(folder: str, name: str) -> list[Generation]:
    rows = json.loads(storage.read_bytes(storage.join(folder, f"{name}.json")))
    return [as_generation(row) for row in rows]
