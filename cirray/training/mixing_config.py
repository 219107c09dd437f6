"""How real and other rows share a batch: the policies' settings. No torch."""

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from cirray.core.components import Component
from cirray.core.config import Config
from cirray.core.registry import Registry

if TYPE_CHECKING:
    from cirray.training.mixing import MakeMixer


class MixerConfig(Config):
    """What the settings of every policy can say; the settings of one that has none of its own."""

    def rows_per_step(self, batch: int) -> int:
        """Rows of a global batch of `batch` real ones; here: these alone."""
        return batch


class PairedConfig(MixerConfig):
    """Other rows beside each real one."""

    ratio: float = Field(1.0, ge=0, le=16)
    """Other rows for each real one (VDG peaks at 1)."""

    def rows_per_step(self, batch: int) -> int:
        """The real rows and those beside them."""
        return batch + round(self.ratio * batch)


class CurriculumConfig(MixerConfig):
    """A share of real rows that moves while training."""

    shares: tuple[float, float] = (0.0, 1.0)
    """Share of real rows in a batch at the first and at the last step."""

    @model_validator(mode="after")
    def _in_range(self) -> "CurriculumConfig":
        if not all(0 <= share <= 1 for share in self.shares):
            raise ValueError(f"shares {self.shares} must be two shares in [0, 1]")
        return self


MIXERS: "Registry[MakeMixer]" = Registry(
    "mixing", ["cirray.training.mixing"],
    {"concat": MixerConfig, "paired": PairedConfig, "curriculum": CurriculumConfig}, MixerConfig,
)  # fmt: skip
"""Name -> policy that shares batches between real and pseudo rows."""


class Mixing(Component):
    """How real and other rows share a batch."""

    registry = MIXERS
    kind: str = "concat"
    """Name of the policy; `concat` shuffles all rows."""
