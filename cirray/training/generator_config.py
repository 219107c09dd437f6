"""Configuration of the generator's two loops. No torch."""

from pydantic import Field

from cirray.core.fields import Features
from cirray.data.config import DataConfig
from cirray.training.config import OptimizerConfig, PiecesConfig


class AlignmentConfig(PiecesConfig):
    """Alignment of the soft tokens with captions, before any labelled triplet."""

    data: DataConfig | None = None
    """Another data set to take captions from (such as CC3M); null: the generator's own."""
    features: tuple[Features, ...] = ()
    """With `data`: features artifacts that hold its images."""

    steps: int = Field(300, ge=1)
    """Optimiser steps."""
    batch: int = Field(128, ge=1)
    """Images per step."""
    optimizer: OptimizerConfig = OptimizerConfig(lr=4e-3)
    """AdamW and schedule."""


class AnswerTrainingConfig(PiecesConfig):
    """Training of the aligned generator on labelled triplets."""

    steps: int = Field(240, ge=0)
    """Optimiser steps; 0 leaves it aligned with captions alone."""
    batch: int = Field(64, ge=1)
    """Triplets per step."""
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-4)
    """AdamW and schedule. A rate of 1e-3 damages an aligned start, and 3e-4 costs a point or two (`docs/LOG.md`)."""
