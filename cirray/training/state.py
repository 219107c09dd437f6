"""State of a training run, and which of its weights checkpoints hold: those that are trained."""

from dataclasses import dataclass, field

import torch
from torch import nn

from cirray.training.config import LoopConfig
from cirray.training.engine import Engine
from cirray.training.task import Task

Row = dict[str, float]


@dataclass
class Best:
    """The best weights so far: step, value, and measurements since without a better one."""

    step: int
    value: float
    misses: int = 0
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    """Trained weights on the CPU of rank 0; empty on other ranks."""


@dataclass
class LoopState:
    """State of a run. `step` counts finished steps; `history` holds one row per logged step."""

    task: Task
    config: LoopConfig
    engine: Engine
    rank: int = 0
    world: int = 1
    step: int = 0
    history: list[Row] = field(default_factory=list)
    best: Best | None = None
    """What a `KeepBest` callback keeps."""
    stopped: bool = False
    """Set by a callback on every rank: this step is the last."""

    @property
    def finished(self) -> bool:
        """True after the last step."""
        return self.stopped or self.step >= self.config.steps


def frozen_names(model: nn.Module) -> set[str]:
    """Names of the weights that are not trained; the run's start has them."""
    return {name for name, item in model.named_parameters(remove_duplicate=False) if not item.requires_grad}


def trained_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Trained weights and buffers by name."""
    frozen = frozen_names(model)
    return {name: value for name, value in model.state_dict().items() if name not in frozen}
