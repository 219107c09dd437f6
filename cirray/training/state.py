"""Where a training run stands."""

from dataclasses import dataclass, field

from cirray.training.config import LoopConfig
from cirray.training.engine import Engine
from cirray.training.task import Task

Row = dict[str, float]


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

    @property
    def finished(self) -> bool:
        """True after the last step."""
        return self.step >= self.config.steps
