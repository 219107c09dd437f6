"""Configuration of the small language model, and of the pretraining of both towers. No torch."""

from typing import Literal

from pydantic import Field, model_validator

from cirray.core.config import Config
from cirray.core.fields import Effort
from cirray.training.config import LoopConfig, OptimizerConfig


class LanguageModelConfig(Config):
    """Sizes of a `LlamaForCausalLM` that is built from scratch (a pretrained one brings its own)."""

    width: int = Field(128, ge=8)
    """Width of the token vectors."""
    layers: int = Field(4, ge=1)
    """Transformer layers."""
    heads: int = Field(4, ge=1)
    """Attention heads; divide the width."""
    intermediate: int = Field(320, ge=8)
    """Width inside the feed-forward."""
    positions: int = Field(256, ge=16)
    """Longest sequence."""
    initializer_range: float = Field(0.05, gt=0)
    """Standard deviation of the start weights."""

    @model_validator(mode="after")
    def _fits(self) -> "LanguageModelConfig":
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"heads {self.heads} must divide width {self.width} into even parts")
        return self


class LanguageOptimizerConfig(OptimizerConfig):
    """AdamW and schedule of the language model's pretraining."""

    lr: float = Field(2e-3, gt=0)
    """Peak learning rate."""
    schedule: Literal["one_cycle", "cosine", "constant"] = "cosine"
    """Linear warm-up, then cosine down."""
    warmup: float = Field(0.04, ge=0, lt=1)
    """Share of the schedule that warms up."""


class VisionOptimizerConfig(OptimizerConfig):
    """AdamW and schedule of the vision tower's pretraining."""

    lr: float = Field(2e-3, gt=0)
    """Peak learning rate."""


class LanguageTrainingConfig(LoopConfig):
    """Text-only pretraining of the small language model."""

    steps: int = Field(1500, ge=1)
    """Optimiser steps. The skill keeps growing long after it has appeared: do not stop early."""
    batch: int = Field(64, ge=1)
    """Passages per step."""
    optimizer: LanguageOptimizerConfig = LanguageOptimizerConfig()
    """AdamW and schedule."""
    heads: float = Field(0.5, ge=0)
    """Weight of the throw-away heads that compare the two images' slots."""
    noise: float = Field(0.1, ge=0)
    """Largest noise on slots that hold bags, in standard deviations of such slots."""
    difference_share: float = Field(0.3, ge=0, le=1)
    """Share of batches with slots for the difference pass (q_c) after those of the two images."""
    bag_width: int = Field(12, ge=1)
    """Most words in one bag."""
    checkpoint_every: Effort[int | None] = Field(100, ge=1)
    """Steps between checkpoints for resuming."""


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
    optimizer: VisionOptimizerConfig = VisionOptimizerConfig()
    """AdamW and schedule."""


class FrozenLanguageConfig(Config):
    """How the weights of a generator's language model are held."""

    language_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Type of the language model's weights; `auto` keeps the stored one. A model that stays frozen may have 16 bits,
    which halve its memory and the time of a step."""
    language_quantization: Literal["none", "8bit", "4bit"] = "none"
    """Hold the frozen language model in 8 or 4 bits (needs bitsandbytes)."""


class ClipModelConfig(Config):
    """Sizes of a `CLIPModel` that is built from scratch (a pretrained one brings its own)."""

    image_size: int = Field(48, ge=16)
    """Side of the square images in pixels."""
    patch_size: int = Field(16, ge=4)
    """Side of one patch in pixels; divides the image size."""
    vision_width: int = Field(128, ge=8)
    """Width of the patch tokens."""
    vision_layers: int = Field(2, ge=1)
    """Layers of the vision tower."""
    text_width: int = Field(128, ge=8)
    """Width of the word embeddings."""
    text_layers: int = Field(3, ge=1)
    """Layers of the text encoder."""
    heads: int = Field(4, ge=1)
    """Attention heads of both; divide both widths."""
    embed_dim: int = Field(128, ge=8)
    """Width of the common space."""
    positions: int = Field(77, ge=8)
    """Longest text in tokens."""

    @model_validator(mode="after")
    def _fits(self) -> "ClipModelConfig":
        if self.vision_width % self.heads or self.text_width % self.heads:
            raise ValueError(f"heads {self.heads} must divide widths {self.vision_width} and {self.text_width}")
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} must divide image_size {self.image_size}")
        return self


class ClipOptimizerConfig(OptimizerConfig):
    """AdamW and schedule of a small CLIP's pretraining."""

    lr: float = Field(2e-3, gt=0)
    """Peak learning rate."""


class ClipTrainingConfig(LoopConfig):
    """Contrastive pretraining of a small CLIP on images and captions."""

    steps: int = Field(600, ge=1)
    """Optimiser steps."""
    batch: int = Field(128, ge=2)
    """Image-caption pairs per step."""
    optimizer: ClipOptimizerConfig = ClipOptimizerConfig()
    """AdamW and schedule."""
    dense: float = Field(1.0, ge=0)
    """Weight of the throw-away heads that read every cell from patches, image embedding and caption embedding (embedded
    world only)."""
    checkpoint_every: Effort[int | None] = Field(100, ge=1)
    """Steps between checkpoints for resuming."""
