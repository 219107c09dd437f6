"""Configuration of the mapping stage and its baselines. No torch."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cirray.core.components import Component
from cirray.core.config import Config
from cirray.core.fields import Common
from cirray.core.registry import Registry
from cirray.training.config import LoopConfig, OptimizerConfig, PiecesConfig

if TYPE_CHECKING:
    from cirray.training.task import Task
    from cirray.training.zeroshot.base import MapSetup


class TokenSearchConfig(LoopConfig):
    """SEARLE's first part: a token for every image, found by gradient descent (OTI)."""

    steps: int = Field(350, ge=1)
    """Steps for every image."""
    batch: int = Field(256, ge=1)
    """Images at a time."""
    optimizer: OptimizerConfig = OptimizerConfig(
        lr=2e-2, weight_decay=0.01, betas=(0.9, 0.999), schedule="constant", warmup=0.0
    )
    """AdamW at a constant rate."""
    average: float = Field(0.99, ge=0, lt=1)
    """Decay of the moving average that is kept as the token."""
    phrase_weight: float = Field(0.5, ge=0)
    """Weight of the phrase term: a phrase with the token must mean what the phrase with the image's caption means."""


class AlignedConfig(Config):
    """Pseudo-sentences against images and captions."""

    temperature: float = Field(0.01, gt=0)
    """Temperature of the mapping loss: CLIP's own, fixed."""
    alignment: Literal["none", "hard", "soft", "mixed"] = "mixed"
    """Soft text alignment: left out (Pic2Word), its cross-entropy alone, its KL alone, or both."""
    lambda_sta: float = Field(1.0, ge=0)
    """Weight of the soft text alignment."""
    teacher_temperature: float = Field(0.05, gt=0)
    """Temperature tau_t of the captions' own distribution."""
    student_temperature: float = Field(0.07, gt=0)
    """Temperature tau_s of the pseudo-sentences' distribution."""
    hardness: float = Field(0.5, ge=0, le=1)
    """Share h of the cross-entropy with the own caption, in `alignment=mixed`."""
    teacher_mix: float = Field(0.0, ge=0, le=1)
    """eta: share of the image's own distribution over captions in the teacher."""


class TextOnlyConfig(Config):
    """Masked captions (LinCIR)."""

    noise: float = Field(1.0, ge=0)
    """Scale of the noise, U(0, 1) a sample times N(0, 1) a number."""
    keep_words: tuple[str, ...] = (
        "in", "on", "at", "of", "to", "with", "and", "or", "by", "for", "from", "is", "are", "has", "have", "be",
        "over", "under", "near", "into", "while", "as", "that", "which", "it", "its", "their", "there",
    )  # fmt: skip
    """Words that are never masked; runs of all others become one slot."""


class DistilConfig(Config):
    """Tokens found image by image, then distilled (SEARLE)."""

    search: TokenSearchConfig = TokenSearchConfig()
    """The tokens that are distilled."""
    temperature: float = Field(0.25, gt=0)
    """Temperature of the contrast of phi's tokens with the searched ones."""
    phrase_weight: float = Field(0.75, ge=0)
    """Weight of the phrase term."""
    phrases: tuple[str, ...] = ("a photo of $", "a picture of $", "this shows $ and something else", "there is $")
    """Phrases with a slot, for the search too; one is drawn at each step."""


UNTRAINED = "untrained"
"""The objective that trains nothing, for training-free rows."""
MAPPINGS: "Registry[Callable[[MapSetup], Task]]" = Registry(
    "mapping objective", [f"cirray.training.zeroshot.{name}" for name in ("mapping", "text_only", "token_search")],
    {"mapping": AlignedConfig, "text_only": TextOnlyConfig, "distil": DistilConfig, UNTRAINED: Config},
)  # fmt: skip
"""Name -> task of the one training loop."""


class MappingObjective(Component):
    """What phi and injection learn."""

    registry = MAPPINGS
    kind: str = "mapping"
    """Name of the objective: `mapping` (two-stage, and Pic2Word with `alignment=none`), `text_only` (LinCIR), `distil`
    (SEARLE), or `untrained` (nothing is learned)."""


class MappingConfig(PiecesConfig):
    """How phi and injection learn."""

    objective: Common[MappingObjective] = MappingObjective()
    """What they learn."""
    steps: int = Field(20_000, ge=1)
    """Optimiser steps."""
    batch: int = Field(512, ge=2)
    """Images (or captions) per step."""
    optimizer: OptimizerConfig = OptimizerConfig(
        lr=1e-4, weight_decay=0.01, betas=(0.9, 0.999), schedule="cosine", warmup=0.025
    )
    """AdamW and schedule: 500 of 20,000 steps warm up. Pic2Word decays weights by 0.1."""
