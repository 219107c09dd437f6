"""The loop's interface to a training problem: model, batches, loss, saving."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import nn

from cirray.losses.output import LossOutput
from cirray.models.batch import Movable
from cirray.training.gather import Gather


class Task(Protocol):
    """A training problem. The loop calls these from every rank, and `save` only from rank 0."""

    def model(self) -> nn.Module:
        """The model to train; called once per run, same start weights on all ranks."""

    def batches(self, start_step: int, rank: int, world: int) -> Iterator[Any]:
        """The calling rank's share of the global batch of step `start_step`, `start_step + 1`, ...

        A batch is a pure function of the step, so that a resumed run equals an unbroken one. A batch moves to a device
        by its own `to(device)` method.
        """

    def loss(self, model: nn.Module, batch: Any, gather: Gather) -> LossOutput:
        """The calling rank's loss; the mean of it over ranks is the loss of the global batch.

        Whatever needs gradients goes through the call of `model` (`engine.module`), so that hooks run.
        """

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the trained model (without optimiser) into an existing folder."""


@runtime_checkable
class Divided(Protocol):
    """A task whose batches can go through its model in pieces (gradient accumulation)."""

    def pieces(self, batch: Any) -> Iterable[Any]:
        """The batch in pieces, whose losses add up to its loss."""


@dataclass(frozen=True)
class Parted:
    """A batch that goes through the model in pieces although its loss compares all its rows (`cached_gradients`)."""

    whole: Any
    """The batch without what the model alone reads."""
    pieces: Callable[[], Iterable[Any]]
    """Its pieces in order, made anew each time."""


@runtime_checkable
class Contrasting(Protocol):
    """A task whose loss is one of vectors, so that its batches may be `Parted`."""

    def vectors(self, model: nn.Module, batch: Any) -> Movable:
        """What the loss reads of a batch or a piece of it: tensors of its rows, and some without rows."""

    def loss_of(self, vectors: Any, batch: Any, gather: Gather) -> LossOutput:
        """The calling rank's loss, of all its vectors."""


class SourceTask:
    """A task whose batches are a function of step, rank and world, and whose model returns its own loss.

    Subclasses save what is kept of the model.
    """

    def __init__(self, learner: nn.Module, source: Callable[[int, int, int], Any]) -> None:
        """Take the model, trained in place, and (step, rank, world) -> the rank's share of the batch."""
        self._learner: Any = learner
        self._source = source

    def model(self) -> nn.Module:
        """The learner, with the heads that are thrown away."""
        return self._learner

    def batches(self, start_step: int, rank: int, world: int) -> Iterator[Any]:
        """Batches of step after step, without end."""
        for step in count(start_step):
            yield self._source(step, rank, world)

    def loss(self, model: nn.Module, batch: Any, gather: Gather) -> LossOutput:
        """What the model's forward pass gives."""
        return model(batch)
