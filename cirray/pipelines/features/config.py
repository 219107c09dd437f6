"""Configuration of the towers and of embedding. No torch, no ray."""

from typing import Literal

from pydantic import Field

from cirray.core.config import Config
from cirray.core.fields import Effort, Place
from cirray.data.config import DataConfig, ImageLimits, TransformConfig
from cirray.models.config import VisionTowerConfig
from cirray.models.towers.config import (
    LanguageModelConfig,
    LanguageTrainingConfig,
    VisionTrainingConfig,
)
from cirray.pipelines.cluster.config import Part, PoolConfig, RayConfig


class EmbedRun(Config):
    """Run every image through the frozen vision tower, once."""

    data: DataConfig = DataConfig()
    parts: tuple[Part, ...] = ("labelled", "pool", "gallery")
    """Which images: those of the triplets and captions, the unlabelled pool, the gallery, the queries' references. The
    first three: every image."""
    tower: Place = "~/cirray/quickstart/towers"
    """A `towers` or `checkpoint` artifact (path or URI), or whatever `load_vision_tower` reads."""
    out: Place = "~/cirray/quickstart/features"
    """Features artifact (path or URI)."""
    limits: ImageLimits = ImageLimits()
    shard_rows: int = Field(512, ge=1)
    """Images per shard: the unit of work, of progress and of what a kill may cost."""
    batch: Effort[int] = Field(128, ge=1)
    """Images per forward pass."""
    decode_tasks: Effort[int] = Field(2, ge=1)
    """Images are read and decoded by so many processes beside the actors."""
    pool: Effort[PoolConfig] = PoolConfig(size=1)
    ray: Effort[RayConfig] = RayConfig()


class TowersRun(Config):
    """Make or fetch the towers that stay frozen from then on: vision and language model."""

    vision: Place = "asset"
    """`asset` (shipped, embedded world), `train`, a folder or hub id of BLIP-2, InstructBLIP or CLIP, a folder of
    open_clip, `open_clip:NAME=FILE` (an open_clip architecture and its weights), or CLIP4Cir's tuned .pt."""
    language: Place = "asset"
    """`asset` (shipped, embedded world), `train`, or a folder or hub id of a causal language model."""
    clip_tokens: Literal["embedding", "all", "unprojected"] = "embedding"
    """What a CLIP tower gives: the image embedding alone (sum, Combiner), with projected tokens (cross-attention), or
    with the patches of the last block as they are (pseudo-words)."""
    vision_model: VisionTowerConfig = VisionTowerConfig()
    """Sizes of a trained vision tower."""
    transform: TransformConfig = TransformConfig()
    """How a trained vision tower's images are prepared; `size` is the tower's image size."""
    image_mode: Literal["", "target_pad", "squash", "center_crop"] = ""
    """How images of a fetched vision tower become square (SPRC and PTHA: `target_pad`); empty: as its own files say."""
    vision_training: VisionTrainingConfig = VisionTrainingConfig()
    """Pretraining of the vision tower."""
    language_model: LanguageModelConfig = LanguageModelConfig()
    """Sizes of a trained language model."""
    language_training: LanguageTrainingConfig = LanguageTrainingConfig()
    """Text-only pretraining of the language model."""
    corpus: Literal["shapes", "data"] = "shapes"
    """What a language model is trained on: the embedded world's grammar, or captions and training texts of `data`."""
    data: DataConfig = DataConfig()
    """Images, captions and texts; read only by `vision_training.objective=captions` and `corpus=data`."""
    limits: ImageLimits = ImageLimits()
    """Caps on images that are read."""
    device: Effort[str] = "cpu"
    """Where the towers are trained."""
    out: Place = "~/cirray/quickstart/towers"
    """Towers artifact (path or URI)."""
