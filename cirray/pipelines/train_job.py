"""One training run made ready: task, engine, validation and the model's export. The same on Ray and without; no ray."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from cirray.core.errors import DataError
from cirray.data.benchmark import CirDataset, Protocol
from cirray.data.leaks import guarded_ids
from cirray.evaluation.evaluate import evaluate_retriever
from cirray.models.base import Retriever
from cirray.pipelines.config import TrainRun
from cirray.pipelines.leaks import images_of
from cirray.pipelines.live import Features, open_features
from cirray.pipelines.train_inputs import TrainInputs, start_retriever
from cirray.training.config import LoopConfig
from cirray.training.engine import Engine, EngineFactory
from cirray.training.engines import find_engine
from cirray.training.loop import Callback
from cirray.training.retrieval import RetrievalTask
from cirray.training.state import LoopState, Row

METRIC_PREFIX = "val_"


@dataclass(frozen=True)
class TrainJob:
    """What every worker builds for itself."""

    task: RetrievalTask
    features: Features
    validate: Callback


def build_job(run: TrainRun, inputs: TrainInputs, device: str | torch.device = "cpu") -> TrainJob:
    """Open the features, make the model and check the rows.

    Args:
        run: the configuration.
        inputs: its rows.
        device: where images are encoded, should the run name no features.

    Raises:
        ArtifactError, ConfigError, DataError: naming what cannot be used.
    """
    find_engine(run.training.engine)
    features = open_features(run, device)
    missing = features.missing(inputs.gallery_ids)
    if missing:
        raise DataError(
            f"{len(missing)} images of held-out triplets have no features, e.g. {missing[0]!r}. Embed them, or set "
            "validation.queries=0."
        )
    retriever = start_retriever(run, inputs, features.shape[1])
    held_out = frozenset() if run.allow_leaks or inputs.dataset is None else held_out_images(inputs.dataset)
    task = RetrievalTask(retriever, inputs.triplets, features, run.training, held_out)
    return TrainJob(task, features, Validate(run, inputs, features) if inputs.queries else Callback())


def held_out_images(dataset: CirDataset) -> frozenset[str]:
    """Images of a data set's val and test parts."""
    return guarded_ids(dataset) | images_of(dataset.split("val"))


def engine_on(name: str, device: str | torch.device) -> EngineFactory:
    """A named engine, on a device."""
    factory = find_engine(name)

    def build(model: nn.Module, config: LoopConfig, rank: int, world: int) -> Engine:
        return factory(model.to(device), config, rank, world)

    return build


def recall_of(run: TrainRun, inputs: TrainInputs, features: Features, model: nn.Module) -> Row:
    """Recall on the held-out triplets: `val_R@1` and so on, fractions."""
    assert isinstance(model, Retriever)
    result = evaluate_retriever(
        model, features, inputs.queries, inputs.gallery_ids, protocol_of(run, inputs), batch=run.validation.batch
    )
    return {f"{METRIC_PREFIX}{name}": value for name, value in result.metrics.items()}


def protocol_of(run: TrainRun, inputs: TrainInputs) -> Protocol:
    """The data set's protocol, named for its held-out part."""
    assert inputs.dataset is not None
    rule = f"the {len(inputs.gallery_ids)} images of {len(inputs.queries)} held-out triplets"
    return dataclasses.replace(inputs.dataset.protocol, split=run.validation.split, gallery_rule=rule, ks=(1, 5, 10))


class Validate(Callback):
    """Adds recall on held-out triplets to the history row, on schedule and at the end. Rank 0 computes it."""

    def __init__(self, run: TrainRun, inputs: TrainInputs, features: Features) -> None:
        """Remember what to score."""
        self._run, self._inputs, self._features = run, inputs, features

    def on_step(self, state: LoopState, row: Row | None) -> None:
        """Score the present weights."""
        every = self._run.validation.every
        if row is None or not (state.finished or (every and state.step % every == 0)):
            return
        with state.engine.full_weights() as model:
            if state.rank == 0:
                row.update(recall_of(self._run, self._inputs, self._features, model))


class Clock(Callback):
    """Samples per second between the first step and the last (0 when there are fewer than two)."""

    def __init__(self) -> None:
        """Not started."""
        self._first, self._begin, self.rate = 0, 0.0, 0.0

    def on_step(self, state: LoopState, row: Row | None) -> None:
        """Note the time."""
        now = time.perf_counter()
        if not self._begin:
            self._first, self._begin = state.step, now
        elif state.finished:
            self.rate = (state.step - self._first) * state.config.rows_per_step / (now - self._begin)


class ExportModel(Callback):
    """Writes the trained model at the end."""

    def __init__(self, folder: Path) -> None:
        """Remember where."""
        self._folder = folder

    def on_step(self, state: LoopState, row: Row | None) -> None:
        """Save after the last step; all ranks take part, rank 0 writes."""
        if state.finished:
            export(state, self._folder)


def export(state: LoopState, folder: Path) -> None:
    """Write the whole model from rank 0; every rank calls it."""
    with state.engine.full_weights() as model:
        if state.rank == 0:
            state.task.save(model, folder)
