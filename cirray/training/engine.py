"""The interface between the loop and what runs backward passes and optimiser steps, and engines by name."""

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeAlias

import torch
from torch import nn

from cirray.core.errors import ConfigError, unknown_name
from cirray.core.extras import require
from cirray.training.config import LoopConfig


class Engine(Protocol):
    """One worker's view of the training state. Every rank calls every method, in the same order.

    So that W workers equal one, `step()` applies the *mean* of the ranks' gradients, and a parameter that no loss
    reaches has a zero gradient (so weight decay acts on it, on every engine).
    """

    @property
    def module(self) -> nn.Module:
        """The module for the forward pass (the model, or the engine's wrapper)."""

    @property
    def device(self) -> torch.device:
        """Device for batches."""

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""

    def backward(self, loss: torch.Tensor, last: bool = True) -> None:
        """Add the gradients of this rank's loss to those of the step; `last`: no further ones come before `step`."""

    def step(self) -> float:
        """Average gradients over ranks, clip, update weights, advance the schedule, clear gradients.

        Returns: The gradient norm before clipping, the same on all ranks.
        """

    def save(self, folder: Path) -> None:
        """Write the whole training state (weights, optimiser, schedule) into an existing folder."""

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote; the next step equals the one an unbroken run would take.

        Raises ArtifactError when the folder holds no state of this engine and model.
        """

    def full_weights(self) -> AbstractContextManager[nn.Module]:
        """The plain model with whole weights on every rank, for saving it; all ranks enter together."""

    def close(self) -> None:
        """After the last step: leave the model with fp32 weights, where every rank holds all of it."""


EngineFactory: TypeAlias = Callable[[nn.Module, LoopConfig, int, int], Engine]
"""`factory(model, config, rank, world) -> Engine`; torch.distributed is already initialised when world > 1."""


def autocast(device: torch.device, config: LoopConfig) -> torch.autocast:
    """Context of a forward pass: bf16 autocast where the configuration asks for it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.bf16)


ENGINES = {
    "torch": "cirray.training.torch_engine:TorchEngine",
    "deepspeed": "cirray.training.deepspeed_engine:DeepSpeedEngine",
}


def find_engine(name: str) -> EngineFactory:
    """The engine that `training.engine` names.

    Raises ConfigError for an unknown name, with the known ones, or one whose library is not installed.
    """
    if name not in ENGINES:
        raise ConfigError(unknown_name("engine", name, ENGINES))
    if name == "deepspeed":
        require("deepspeed", "train", "training.engine=deepspeed")
    module, _, engine = ENGINES[name].partition(":")
    return getattr(importlib.import_module(module), engine)
