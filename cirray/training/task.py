"""The loop's interface to a training problem: model, batches, loss, saving."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from cirray.losses.output import LossOutput
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

        Args:
            model: `engine.module`; whatever needs gradients goes through its call, so that hooks run.
            batch: what `batches` yielded, on the engine's device.
            gather: access to the other ranks' rows.
        """

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the trained model (without optimiser) into an existing folder."""
