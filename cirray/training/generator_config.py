"""Configuration of the generator's two loops. No torch."""

from pydantic import Field, model_validator

from cirray.core.fields import Effort, Features
from cirray.data.config import DataConfig
from cirray.training.config import LoopConfig, OptimizerConfig


class PiecesConfig(LoopConfig):
    """A loop through the language model, whose memory grows with the rows that are in it at once."""

    pieces: Effort[int] = Field(1, ge=1)
    """Pieces that a worker's share of a batch goes through the language model in, one after another (gradient
    accumulation): less memory, the same loss and gradient."""

    @model_validator(mode="after")
    def _accumulates(self) -> "PiecesConfig":
        if self.pieces > 1 and self.engine != "torch":
            raise ValueError(f"pieces={self.pieces} works with engine torch; found engine={self.engine}")
        if self.pieces > self.batch:
            raise ValueError(f"pieces={self.pieces} is more than the batch of {self.batch}")
        return self


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
