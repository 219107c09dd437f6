"""Where a training run stands."""

from dataclasses import dataclass, field

import torch

from cirray.training.config import LoopConfig
from cirray.training.engine import Engine
from cirray.training.task import Task

Row = dict[str, float]


@dataclass
class Best:
    """The best measured weights so far: where, how good, and how many measurements since were no better."""

    step: int
    value: float
    misses: int = 0
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    """The trained ones, on the CPU of rank 0; other ranks hold none."""


@dataclass
class LoopState:
    """Where a run stands. `step` counts finished steps; `history` holds one row per logged step."""

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
    """Set by a callback, on every rank alike: the present step is the last."""

    @property
    def finished(self) -> bool:
        """True after the last step."""
        return self.stopped or self.step >= self.config.steps
