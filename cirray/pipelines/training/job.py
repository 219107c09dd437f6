"""Prepare a training run: task, engine, validation and export, the same with Ray and without. No ray."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from cirray.core.errors import ConfigError, DataError, unknown_name
from cirray.data.benchmark import CirDataset, Protocol
from cirray.evaluation.evaluate import evaluate_retriever
from cirray.evaluation.protocol_metrics import figure_names
from cirray.evaluation.weighing import Weighing
from cirray.features.store import FeatureStore
from cirray.models.base import Retriever
from cirray.pipelines.training.config import BENCHMARK, SLICE, SPLIT, TrainRun
from cirray.pipelines.training.inputs import TrainInputs, gallery_of, queries_of
from cirray.pipelines.training.live import Features, live_features
from cirray.pipelines.training.start import check_start_weights, start_retriever
from cirray.training.engine import find_engine
from cirray.training.loop import Callback
from cirray.training.objectives import check_objective
from cirray.training.retrieval import RetrievalTask, TrainingRows
from cirray.training.selection import KeepBest, put_best
from cirray.training.state import LoopState, Row
from cirray.training.terms.config import MatchingConfig
from cirray.types import images_of


@dataclass(frozen=True)
class TrainJob:
    """What every worker builds."""

    task: RetrievalTask
    features: Features
    measures: tuple[Callback, ...]
    """Callbacks that measure recall, and keep the best weights by it."""


def build_job(run: TrainRun, inputs: TrainInputs, device: str | torch.device = "cpu") -> TrainJob:
    """Open the features, make the model and check the rows; images are encoded on `device`, if the run has no features.

    Raises ArtifactError, ConfigError or DataError naming what cannot be used.
    """
    find_engine(run.training.engine)
    features = features_of(run, inputs, device)
    retriever = start_retriever(run, inputs, features.shape[1])
    task = RetrievalTask(retriever, inputs.triplets, features, run.training, held_out_of(run, inputs))
    return TrainJob(task, features, measures_of(run, inputs, features))


def check_job(run: TrainRun, inputs: TrainInputs) -> Features:
    """Refuse what `build_job` would refuse, from configs, manifests and rows: no weights are loaded, no model is built.

    Returns: the run's features.

    Raises ArtifactError, ConfigError or DataError as `build_job`.
    """
    find_engine(run.training.engine)
    features = features_of(run, inputs)
    start = check_start_weights(run, inputs, features.shape[1])
    rows = TrainingRows(inputs.triplets, features, run.training, held_out_of(run, inputs))
    check_objective(rows.known, start)
    measures_of(run, inputs, features)
    return features


def features_of(run: TrainRun, inputs: TrainInputs, device: str | torch.device = "cpu") -> Features:
    """The run's features, which hold every image that is measured.

    Raises ArtifactError or DataError for features that cannot be read, or an image without some.
    """
    features = FeatureStore.open_many(run.features, inputs.verified) if run.features else live_features(run, device)
    missing = features.missing([*inputs.gallery_ids, *gallery_of(inputs.slice)])
    if missing:
        raise DataError(
            f"{len(missing)} images of held-out triplets have no features, e.g. {missing[0]!r}. Embed them, or set "
            "validation.queries=0 and validation.held_out=0."
        )
    return features


def measures_of(run: TrainRun, inputs: TrainInputs, features: Features) -> tuple[Callback, ...]:
    """Callbacks that measure recall, and keep the best weights by it if the run asks for it."""
    config = run.validation
    if config.queries == BENCHMARK and inputs.dataset is not None:
        check_figures(config.keep, [f"{SPLIT}{name}" for name in figure_names(inputs.dataset.protocol, inputs.queries)])
    validate = (Validate(run, inputs, features),) if inputs.queries or inputs.slice else ()
    keep = (KeepBest(config.keep, config.every, config.patience),) if config.keep and config.every else ()
    return (*validate, *keep)


def check_figures(keep: Sequence[str], known: Sequence[str]) -> None:
    """Refuse to keep weights by a figure that the benchmark does not have, before the first step.

    Raises ConfigError naming it, and the known ones.
    """
    for name in keep:
        if name.startswith(SPLIT) and name not in known:
            raise ConfigError(unknown_name("validation.keep", name, known))


def held_out_of(run: TrainRun, inputs: TrainInputs) -> frozenset[str]:
    """Images that no term may train on: those of the data set's val and test parts."""
    if run.allow_leaks or inputs.dataset is None:
        return frozenset()
    return inputs.dataset.guarded_ids | images_of(inputs.dataset.split("val"))


def recall_of(run: TrainRun, inputs: TrainInputs, features: Features, model: nn.Module) -> Row:
    """Recall on the held-out triplets, fractions: `val_R@1` and so on, and `held_R@1` on the training slice.

    With `validation.queries: benchmark` the split's figures are those of the data set's own protocol. A matching head
    that is trained is looked at, too: its weight beside the similarity is chosen (`held_rerank_weight`) on the slice,
    or where there is none on the split's triplets, never on a benchmark.
    """
    assert isinstance(model, Retriever) and inputs.dataset is not None
    dataset, rows = inputs.dataset, Row()
    gallery: Sequence[str]
    for prefix, queries, gallery in (
        (SPLIT, inputs.queries, inputs.gallery_ids), (SLICE, queries_of(inputs.slice), gallery_of(inputs.slice))
    ):  # fmt: skip
        if queries:
            protocol, galleries = protocol_of(run, dataset, len(queries), len(gallery)), None
            if prefix == SPLIT and run.validation.queries == BENCHMARK:
                protocol, gallery, galleries = dataset.protocol, dataset.gallery_ids, dataset.galleries
            weighing = _weighing(run, inputs, features, model, prefix)
            result = evaluate_retriever(
                model, features, queries, gallery, protocol, galleries=galleries, batch=run.validation.batch,
                rerank=weighing,
            )  # fmt: skip
            rows |= {f"{prefix}{name}": value for name, value in result.metrics.items()}
            if weighing:
                weight, share = weighing.chosen()
                model.matching_head.choose(weight)  # type: ignore[union-attr,operator]
                rows |= {f"{prefix}rerank_weight": weight, f"{prefix}reranked_R@1": share}
    return rows


def _weighing(run: TrainRun, inputs: TrainInputs, features: Features, model: Retriever, prefix: str) -> Weighing | None:
    """What looks at a trained matching head on the queries that its weight is chosen on."""
    chooses = prefix == (SLICE if inputs.slice else SPLIT if run.validation.queries != BENCHMARK else "")
    trained = any(isinstance(term, MatchingConfig) for term in run.training.active_terms.values())
    return Weighing(model, features) if chooses and trained and getattr(model, "matching_head", None) else None


def protocol_of(run: TrainRun, dataset: CirDataset, queries: int, images: int) -> Protocol:
    """The data set's reference rule over one small gallery.

    Plain recall, since held-out triplets have no category (Fashion IQ) and no subset (CIRR).
    """
    rule = f"the {images} images of {queries} held-out triplets"
    return dataclasses.replace(
        dataset.protocol, split=run.validation.split, gallery_rule=rule, metrics=("recall",), ks=run.validation.ks
    )


@dataclass
class Validate(Callback):
    """Adds recall on held-out triplets to the history row, on schedule and at the end. Rank 0 computes it.

    A run that stops early (`validation.patience`) stops at such a row.
    """

    run: TrainRun
    inputs: TrainInputs
    features: Features

    def on_step(self, state: LoopState, row: Row | None) -> None:
        """Score the current weights."""
        every = self.run.validation.every
        if row is None or not (state.finished or (every and state.step % every == 0)):
            return
        with state.engine.full_weights() as model:
            if state.rank == 0:
                row.update(recall_of(self.run, self.inputs, self.features, model))


class Clock(Callback):
    """Samples per second since the first step (0 before the second)."""

    rate = 0.0
    _first, _begin = 0, 0.0

    def on_step(self, state: LoopState, row: Row | None) -> None:
        """Note the time."""
        now = time.perf_counter()
        if not self._begin:
            self._first, self._begin = state.step, now
        else:
            self.rate = (state.step - self._first) * state.config.rows_per_step / (now - self._begin)


@dataclass
class ExportModel(Callback):
    """Writes the trained model into a folder at the end."""

    folder: Path

    def on_end(self, state: LoopState) -> None:
        """Save after the last step, also in a resumed run that had finished it; all ranks take part, rank 0 writes."""
        export(state, self.folder)


def export(state: LoopState, folder: Path) -> None:
    """Write the whole model from rank 0, with the best weights if some were kept; every rank calls it."""
    with state.engine.full_weights() as model:
        if state.rank == 0:
            put_best(state, model)
            state.task.save(model, folder)


def title_of(run: TrainRun) -> str:
    """Title of the progress bar."""
    return "pretrain" if run.training.objective == "pretrain" else f"fine-tune ({run.training.objective})"
