"""Configuration of the pretraining of small towers. No torch."""

from typing import Literal

from pydantic import Field

from cirray.training.config import LoopConfig, OptimizerConfig


class LanguageTrainingConfig(LoopConfig):
    """Text-only pretraining of the small language model."""

    steps: int = Field(1500, ge=1)
    """Optimiser steps. The skill keeps growing long after it has appeared: do not stop early."""
    batch: int = Field(64, ge=1)
    """Passages per step."""
    optimizer: OptimizerConfig = OptimizerConfig(lr=2e-3, schedule="cosine", warmup=0.04)
    """AdamW and schedule."""
    heads: float = Field(0.5, ge=0)
    """Weight of the throw-away heads that compare the two images' slots."""
    noise: float = Field(0.1, ge=0)
    """Largest noise on slots that hold bags, in standard deviations of such slots."""
    difference_share: float = Field(0.3, ge=0, le=1)
    """Share of batches with slots for the difference pass (q_c) after those of the two images."""
    bag_width: int = Field(12, ge=1)
    """Most words in one bag."""


class VisionTrainingConfig(LoopConfig):
    """Pretraining of the small vision tower."""

    objective: Literal["cells", "captions"] = "cells"
    """`cells`: per-patch heads on fresh scenes of the embedded world. `captions`: words of captions, on any images."""
    clutter: int = Field(0, ge=0, le=64)
    """Specks behind the objects of the fresh scenes, as in worlds with `clutter`."""
    steps: int = Field(200, ge=1)
    """Optimiser steps."""
    batch: int = Field(128, ge=1)
    """Images per step."""
    optimizer: OptimizerConfig = OptimizerConfig(lr=2e-3)
    """AdamW and schedule."""


class ClipTrainingConfig(LoopConfig):
    """Contrastive pretraining of a small CLIP on images and captions."""

    steps: int = Field(600, ge=1)
    """Optimiser steps."""
    batch: int = Field(128, ge=2)
    """Image-caption pairs per step."""
    optimizer: OptimizerConfig = OptimizerConfig(lr=2e-3)
    """AdamW and schedule."""
    dense: float = Field(1.0, ge=0)
    """Weight of the throw-away heads that read every cell from patches, image embedding and caption embedding (embedded
    world only)."""
