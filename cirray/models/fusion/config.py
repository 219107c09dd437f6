"""Heads that make one query of an image and a text, in a Q-Former or a dual encoder, and their settings. No torch."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from cirray.core.components import Component
from cirray.core.config import Config
from cirray.core.registry import Registry

if TYPE_CHECKING:
    from cirray.models.fusion.base import Fusion
    from cirray.models.fusion.dual import MakeHead


HEADS: "Registry[Callable[[Any], Fusion]]" = Registry(
    "fusion", [f"cirray.models.fusion.{name}" for name in ("two_pass", "single")],
    dict.fromkeys(("two_pass", "text_only", "image_only"), Config),
)  # fmt: skip
"""Name -> what makes a Q-Former's head of its own settings."""


class QFormerFusion(Component):
    """How image and text become one query of a Q-Former."""

    registry = HEADS
    kind: str = "two_pass"
    """Name of the head: `two_pass` (SPRC, PTHA), or one side alone, `text_only` or `image_only`."""


class HeadConfig(Config):
    """What the settings of every head can say; the settings of one that has none of its own."""

    def check(self, width: int) -> None:
        """Look at the width of the common space; here: any will do.

        Raises ValueError naming the setting that does not go with it.
        """


class CombinerConfig(HeadConfig):
    """CLIP4CIR's Combiner."""

    projection_factor: int = Field(4, ge=1)
    """Width of each side's projection over the common width (CLIP4CIR: 640 -> 2560)."""
    hidden_factor: int = Field(8, ge=1)
    """Width of the hidden layers over the common width (CLIP4CIR: 5120)."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Dropout on hidden layers (CLIP4CIR: 0.5)."""


class CrossAttentionConfig(HeadConfig):
    """A text vector that reads the image's tokens."""

    layers: int = Field(2, ge=1)
    """Layers."""
    heads: int = Field(4, ge=1)
    """Attention heads; divide the common width."""

    def check(self, width: int) -> None:
        """Heads share the width evenly. Raises ValueError: where they cannot."""
        if width % self.heads:
            raise ValueError(f"fusion.settings.heads {self.heads} must divide the common width {width}")


class SumConfig(HeadConfig):
    """The weighted sum of image and text vector."""

    text_share: float = Field(0.5, ge=0, le=1)
    """Weight of the text, the image has the rest; 0.5 is the plain sum (Pic2Word's and BGE-VL's rows). A query may
    have another one."""
    unit: bool = False
    """Sum vectors of norm 1 (Pic2Word, SEARLE), or as the encoders give them (CLIP4CIR, BGE-VL)."""


class SlerpConfig(HeadConfig):
    """The arc from image to text."""

    text_share: float = Field(0.8, ge=0, le=1)
    """How far from the image towards the text the query lies (docs/PAPERS.md#slerp: 0.8). A query may have another
    one."""


class TirgConfig(HeadConfig):
    """TIRG's gate and residual."""

    norm: Literal["layer", "batch"] = "layer"
    """Layer norm, or the paper's batch norm (a row's query then depends on its batch)."""


DUAL_HEADS: "Registry[MakeHead]" = Registry(
    "dual-encoder fusion", [f"cirray.models.fusion.{name}" for name in ("dual", "arithmetic", "tirg")],
    {
        "sum": SumConfig, "combiner": CombinerConfig, "cross_attention": CrossAttentionConfig, "tirg": TirgConfig,
        "slerp": SlerpConfig, "text": HeadConfig, "image": HeadConfig, "joint": HeadConfig,
    },
    HeadConfig,
)  # fmt: skip
"""Name -> the head's class."""


WEIGHTLESS = ("sum", "slerp", "text", "image")
"""Heads that need no training."""
JOINT = "joint"
"""No head at all: the encoder itself reads picture and text together."""


class DualFusion(Component):
    """How image and text vector become the query."""

    registry = DUAL_HEADS
    kind: str = "sum"
    """Name of the head; slerp, text and image have no weights, and joint is the encoder's own way."""
