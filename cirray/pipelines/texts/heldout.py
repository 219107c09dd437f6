"""Texts of a generator's held-out pairs, and the loss of people's: by this process, or in parts by a pool of actors."""

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
from cirray.training.generation import generator_batch
from cirray.triplets.pairs import pair_table, to_pairs
from cirray.triplets.store import row_keys
from cirray.types import Generation, Pair, Triplet, part_name

TEXTS = "heldout"
"""Folder of a stage's parts while it works; below it one for each state of the weights."""
_WEIGHTS = "weights.pt"
_BATCH = 256


def write_texts(
    run: GeneratorRun, stage: Stage | None, model: TrainableGenerator, triplets: Sequence[Triplet],
    features: FeatureLookup, answers: bool = False,
) -> tuple[list[Generation], float | None]:  # fmt: skip
    """Texts of the first `evaluate_pairs` triplets' pairs in both directions, in their order; with `answers` also the
    loss of all triplets' own texts (`token_loss`). In a stage from `ray_from` triplets on by actors.

    Raises GenerationError when parts are lost; CirrayError: raised by an actor, or as in `run_parts`.
    """
    rows = triplets if answers else triplets[: run.evaluate_pairs]
    pairs = [Pair(row.triplet_id, row.reference_id, row.target_id) for row in rows]
    if stage is None or run.ray is None or not run.ray.enabled or len(rows) < run.ray_from:
        writer = TRAINABLE.get(run.generator.kind).writer(model, run.decoding)
        made = writer.generate(pairs[: run.evaluate_pairs], features)
        return made, token_loss(model, features, triplets) if answers else None
    weights = packed(model)
    folder = storage.join(stage.work_uri, TEXTS, hashlib.blake2b(weights, digest_size=8).hexdigest())
    storage.write_bytes(storage.join(folder, _WEIGHTS), weights)
    pool = PoolConfig(size=run.ray.num_workers, cpus=run.ray.cpus_per_worker, gpus=float(run.ray.use_gpu))
    settings = {
        "device": pool.device, "run": run.to_dict(), "uri": folder, "folder": working_folder(), "answers": answers
    }  # fmt: skip
    table = pair_table(pairs).append_column("text", pa.array([row.modification for row in rows], pa.string()))
    parts = Parts(
        "write held-out texts", "pairs", Cut(table, run.part_rows), [Step(WriteTexts, settings, pool)],
        partial(row_keys, columns=("pair_id",)), partial(_found, folder),
    )  # fmt: skip
    run_parts(stage, parts, run.ray)
    found = [_read(folder, part_name(number)) for number in range(len(parts.tables))]
    storage.remove(folder)
    generations = [as_generation(row) for part in found for row in part["texts"]]
    return generations, _mean(sum(part["nats"] for part in found), sum(part["tokens"] for part in found))


class WriteTexts:
    """Actor: texts of one part's pairs and the loss of their own texts, written as one file."""

    def __init__(self, device: str, run: dict[str, Any], uri: str, folder: str, answers: bool) -> None:
        """Load the language model, and the weights below `uri`; `folder` is where the driver works."""
        enter_folder(folder)
        self._run, self._uri, self._answers = validate(GeneratorRun, run), uri, answers
        self._model = build_generator(self._run, device)
        state = torch.load(io.BytesIO(storage.read_bytes(storage.join(uri, _WEIGHTS))), "cpu", weights_only=True)
        self._model.load_tuned(state)
        self._writer = TRAINABLE.get(self._run.generator.kind).writer(self._model, self._run.decoding)
        self._dataset = None if self._run.features else read_dataset(self._run.data)
        self._features = None if self._dataset else features_of(self._run, None, ())

    def __call__(self, columns: Columns) -> dict[str, int]:
        """Do one part (the fields of `Pair`, and `text`)."""
        number, pairs, texts = int(columns["part"][0]), to_pairs(columns), columns["text"].tolist()
        images = sorted({image for pair in pairs for image in (pair.reference_id, pair.target_id)})
        features = self._features or features_of(self._run, self._dataset, images)
        left = max(self._run.evaluate_pairs - number * self._run.part_rows, 0)
        made = [asdict(item) for item in self._writer.generate(pairs[:left], features)]
        nats, tokens = _answer_sums(self._model, features, pairs, texts) if self._answers else (0.0, 0.0)
        told = {"ids": [pair.pair_id for pair in pairs], "texts": made, "nats": nats, "tokens": tokens}
        storage.write_bytes(storage.join(self._uri, f"{part_name(number)}.json"), json.dumps(told).encode())
        return {"pairs": len(pairs)}


def token_loss(model: TrainableGenerator, features: FeatureLookup, triplets: Sequence[Triplet]) -> float | None:
    """Mean cross-entropy per answer token of held-out triplets, in nats; None without any."""
    return _mean(*_answer_sums(model, features, triplets, [row.modification for row in triplets]))


@torch.inference_mode()
def _answer_sums(
    model: TrainableGenerator, features: FeatureLookup, pairs: Sequence[Pair] | Sequence[Triplet], texts: Sequence[str]
) -> tuple[float, float]:
    """Sum of the cross-entropy of texts, in nats, and their tokens."""
    model.eval()
    nats, tokens, device = 0.0, 0.0, next(model.parameters()).device
    for begin in range(0, len(pairs), _BATCH):
        rows = slice(begin, begin + _BATCH)
        batch = generator_batch(model, features, pairs[rows], texts[rows]).to(device)
        loss = model(batch.reference_BPD, batch.target_BPD, batch.answers)
        nats, tokens = nats + float(loss.total), tokens + float(loss.tokens)
    return nats, tokens


def _mean(nats: float, tokens: float) -> float | None:
    return round(nats / tokens, 4) if tokens else None


def packed(model: TrainableGenerator) -> bytes:
    """The weights that training changes, as `load_tuned` takes them once they are loaded."""
    stream = io.BytesIO()
    torch.save(model.tuned_state(), stream)
    return stream.getvalue()


def _found(folder: str) -> Iterator[tuple[str, pa.Array]]:
    for file in storage.list_files(folder):
        if file.endswith(".json"):
            name = file.removesuffix(".json")
            yield name, pa.array(_read(folder, name)["ids"], pa.string())


def _read(folder: str, name: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(storage.read_bytes(storage.join(folder, f"{name}.json")))
    return told
