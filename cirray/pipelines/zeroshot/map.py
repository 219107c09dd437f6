"""Stage 1 of two-stage zero-shot retrieval and its baselines: a map from images to pseudo-words. No triplet is read.

The result is a checkpoint for `evaluate`, `index`, `serve`, and `finetune` (objective composing).
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cirray.core.arrays import read_array
from cirray.core.artifacts import Manifest, Stage, check_place, is_complete, open_stage
from cirray.core.errors import DataError
from cirray.core.progress import progress
from cirray.core.unfinished import stage_function
from cirray.data.benchmark import CirDataset
from cirray.data.readers import read_dataset
from cirray.evaluation.evaluate import evaluate_retriever
from cirray.evaluation.protocol_metrics import figure_names
from cirray.features.store import FeatureStore, check_tower
from cirray.models.towers.places import find_tower, open_tower
from cirray.models.words.word_map import WordMapRetriever, build_word_map
from cirray.pipelines.data.datasets import asked_digest, check_leaks, guard_inputs, read_usable
from cirray.pipelines.training.config import SPLIT
from cirray.pipelines.training.inputs import MODEL, VISION
from cirray.pipelines.training.job import check_figures
from cirray.pipelines.training.train import write_history
from cirray.pipelines.zeroshot.config import MapRun
from cirray.training.callbacks import HISTORY, train_stage
from cirray.training.loop import Callback
from cirray.training.selection import KeepBest, best_row, put_best
from cirray.training.state import LoopState, Row
from cirray.training.zeroshot.base import MapSetup
from cirray.training.zeroshot.config import MAPPINGS, UNTRAINED, DistilConfig
from cirray.training.zeroshot.token_search import search_tokens
from cirray.types import stable_id

WORK = "work-map"


@stage_function
def run_map(run: MapRun) -> Manifest:
    """Train phi (and injection); a killed run goes on from its last checkpoint and its last block of searched tokens.

    Returns: Manifest of kind "checkpoint"; metric `pseudo_R@1`: how often, among `judged` captioned images, a
    pseudo-sentence finds its image first.

    Raises ArtifactError: an input is missing; IndexMismatchError: the towers did not make the features; DataError: no
    captioned image (which `untrained` does not need), or one without features; ConfigError: settings that do not fit.
    """
    check_place(run, "checkpoint")
    dataset, features = read_usable(run.data, run.features), FeatureStore.open_many(run.features)
    images, captions = _captioned(run, dataset, features)
    guard = check_leaks(run.guard, list(images), run.allow_leaks, "The captioned images")
    tower = open_tower(run.towers)
    check_tower(run.features, features.info.encoder_digest, run.towers, tower.digest)
    inputs = {"data": stable_id(*images, "captions", *captions), **validation_inputs(run), **guard_inputs(guard)}
    finished = open_stage(run, "checkpoint", inputs).finished if is_complete(run.out) else None
    if finished:
        return finished
    source = run.model.source or str(Path(find_tower(run.towers)).parent)
    model = run.model.model_copy(update={"source": source})
    retriever = build_word_map(model, features.shape[1], run.training.seed).to(run.device)
    measures = measures_of(run, retriever, tower.digest)
    stage = open_stage(run, "checkpoint", inputs, [f"{WORK}/*.npy", f"{WORK}/*checkpoints/*"])
    if stage.finished:
        return stage.finished
    setup = MapSetup(retriever, images, captions, features, run.training)
    history = _train(stage, setup, measures)
    retriever.cpu().train_composing().save(stage.local / MODEL)
    tower.save(stage.local / MODEL / VISION)
    write_history(stage.local / HISTORY, history)
    metrics = {**_metrics(retriever, setup, run.judged), **_chosen(run, history)}
    shutil.rmtree(stage.local / WORK, ignore_errors=True)
    extra = {"caption_origin": run.caption_origin, **guard}
    return stage.publish({"images": len(images), "steps": len(history) and run.training.steps}, metrics, extra)


def _chosen(run: MapRun, history: list[dict[str, float]]) -> dict[str, Any]:
    """The benchmark's figures of the weights that were kept, and their step."""
    if run.validation.data is None or not history:
        return {}
    row = best_row(history, run.validation.keep) if run.validation.keep else history[-1]
    return {"kept_step": row["step"], **{name: value for name, value in row.items() if name.startswith(SPLIT)}}


def _train(stage: Stage, setup: MapSetup, measures: Sequence[Callback]) -> list[dict[str, float]]:
    kind, work = setup.config.objective.kind, stage.local / WORK
    if kind == UNTRAINED:
        return []
    if isinstance(setup.settings, DistilConfig):
        tokens_MNW = _searched(setup, work / "tokens")
        setup = MapSetup(
            setup.retriever, setup.images, setup.captions, setup.features, setup.config, tokens_MNW
        )  # fmt: skip
    task = MAPPINGS.get(kind)(setup)
    return train_stage(task, setup.config, work, f"map images to words ({kind})", measures)


def _searched(setup: MapSetup, folder: Path) -> np.ndarray:
    """A token for every image, saved block by block."""
    folder.mkdir(parents=True, exist_ok=True)
    blocks, size = [], setup.settings.search.batch
    with progress("search tokens", len(setup.images), "images") as advance:
        for begin in range(0, len(setup.images), size):
            rows, path = range(begin, min(begin + size, len(setup.images))), folder / f"{begin:09d}.npy"
            earlier = path.is_file()
            if not earlier:
                scratch = path.with_suffix(".tmp.npy")
                np.save(scratch, search_tokens(setup, rows).numpy())
                scratch.replace(path)
            blocks.append(read_array(path, mapped=False))
            advance(len(rows), earlier=earlier)
    return np.concatenate(blocks)


def _captioned(run: MapRun, dataset: CirDataset, features: FeatureStore) -> tuple[tuple[str, ...], tuple[str, ...]]:
    images = sorted(name for name, text in dataset.captions.items() if name in dataset.images and text.strip())
    images = images[: run.images]
    if not images and run.training.objective.kind == UNTRAINED:
        return (), ()
    if not images:
        raise DataError(
            f"{dataset.name!r} has no captioned image. Mapping needs images with one caption each: name a data set "
            "that has them, or write captions with a captioner first (field captions of format folder)."
        )
    missing = features.missing(images)
    if missing:
        raise DataError(
            f"{len(missing):,} of {len(images):,} captioned images have no features, e.g. {missing[0]!r}. Embed them "
            "with the CLIP's tower first (cirray embed)."
        )
    return tuple(images), tuple(dataset.captions[name] for name in images)


@torch.inference_mode()
def _metrics(retriever: WordMapRetriever, setup: MapSetup, judged: int) -> dict[str, Any]:
    ids = setup.images[:judged]
    if not ids or retriever.config.query != "composed":
        return {}
    retriever.eval()
    patches_BPD = torch.from_numpy(setup.features.get(list(ids)))
    pseudo_BD = retriever.pseudo_sentences(retriever.encode_reference(patches_BPD))
    scores_BB = retriever.score(pseudo_BD, retriever.encode_gallery(patches_BPD))
    found = (scores_BB.argmax(1) == torch.arange(len(ids))).float().mean()
    return {"pseudo_R@1": round(float(found), 4)}


class Benchmark(Callback):
    """Adds a data set's own figures to the history, as `val_R@1` and so on."""

    def __init__(self, retriever: WordMapRetriever, features: FeatureStore, dataset: CirDataset, every: int) -> None:
        """Take the queries, the features and the interval."""
        self._retriever, self._features, self._dataset, self._every = retriever, features, dataset, every

    def on_step(self, state: LoopState, row: Row | None) -> None:
        """Measure on schedule and at the end."""
        if row is None or not (state.finished or state.step % self._every == 0):
            return
        data = self._dataset
        with state.engine.full_weights():
            result = evaluate_retriever(
                self._retriever, self._features, data.queries, data.gallery_ids, data.protocol, galleries=data.galleries
            )
        row.update({f"{SPLIT}{name}": value for name, value in result.metrics.items()})


class PutBest(Callback):
    """Puts the kept weights into the retriever after the last step."""

    def on_end(self, state: LoopState) -> None:
        """Put them, if some were kept."""
        with state.engine.full_weights() as model:
            put_best(state, model)


def measures_of(run: MapRun, retriever: WordMapRetriever, tower_digest: str) -> tuple[Callback, ...]:
    """Callbacks that measure a run's benchmark and keep the best weights by it; none without a benchmark.

    Raises ConfigError for a figure to keep by that the benchmark does not have; DataError for a query without target,
    or an image without features; IndexMismatchError when another tower made the features.
    """
    config = run.validation
    if config.data is None:
        return ()
    dataset, places = read_dataset(config.data), config.features or run.features
    features = FeatureStore.open_many(places)
    check_tower(places, features.info.encoder_digest, run.towers, tower_digest)
    check_figures(config.keep, [f"{SPLIT}{name}" for name in figure_names(dataset.protocol, dataset.queries)])
    searched = [image for ids in (dataset.gallery_ids, *dataset.galleries.values()) for image in ids]
    _present(features, [*searched, *(query.reference_id for query in dataset.queries)])
    keep = (KeepBest(config.keep, config.every), PutBest()) if config.keep else ()
    return (Benchmark(retriever, features, dataset, config.every), *keep)


def validation_inputs(run: MapRun) -> dict[str, str]:
    """Digest of the benchmark that measures a run."""
    data = run.validation.data
    return {} if data is None else {"validation.data": asked_digest(read_dataset(data))}


def _present(features: FeatureStore, images: Sequence[str]) -> None:
    missing = features.missing(list(dict.fromkeys(images)))
    if missing:
        raise DataError(
            f"{len(missing):,} images of the benchmark have no features, e.g. {missing[0]!r}. Embed them with the "
            "CLIP's tower, or set validation.data=null."
        )
