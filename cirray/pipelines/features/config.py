"""Configuration of the towers and of embedding. No torch, no ray."""

from typing import Literal

from pydantic import Field

from cirray.core.fields import Effort, Place
from cirray.core.places import Run
from cirray.data.config import DataConfig, ImageLimits, TransformConfig
from cirray.models.config import VisionTowerConfig
from cirray.models.towers.config import LanguageModelConfig
from cirray.pipelines.cluster.config import Part, PoolConfig, RayConfig
from cirray.training.tower_config import LanguageTrainingConfig, VisionTrainingConfig


class EmbedRun(Run):
    """Run every image through the frozen vision tower, once."""

    data: DataConfig = DataConfig()
    parts: tuple[Part, ...] = ("labelled", "pool", "gallery")
    """Which images to embed. `labelled`: those of triplets and captions; `pool`: unlabelled ones; `references`: those
    of the queries. The first three together are all images."""
    tower: Place = "@towers"
    """Towers or checkpoint artifact with the vision tower, or a folder or hub id of one."""
    out: Place = "@features"
    """Features artifact (path or URI)."""
    limits: ImageLimits = ImageLimits()
    shard_rows: int = Field(512, ge=1)
    """Images per shard. A killed run repeats only the parts that it did not finish."""
    batch: Effort[int] = Field(128, ge=1)
    """Images per forward pass."""
    decode_tasks: Effort[int] = Field(2, ge=1)
    """Processes that read and decode images beside the actors."""
    pool: Effort[PoolConfig] = PoolConfig(size=1)
    ray: Effort[RayConfig] = RayConfig()


class TowersRun(Run):
    """Make or fetch the towers that stay frozen from then on: vision and language model."""

    vision: Place = "asset"
    """`asset` (shipped, for the embedded world), `train`, or a folder, hub id or file of weights. These may be an image
    encoder of transformers or timm (DINOv2, DINOv3, SigLIP, ViT, ...), BLIP-2, InstructBLIP, CLIP, a folder of
    open_clip, `open_clip:NAME=FILE` (an architecture and its weights), or CLIP4Cir's tuned .pt."""
    language: Place = "asset"
    """`asset` (shipped, for the embedded world), `train`, or a folder or hub id of a language model that writes text
    (LLaMA, OPT, T5, ...), or of a whole BLIP-2 or InstructBLIP."""
    clip_tokens: Literal["embedding", "all", "unprojected"] = "embedding"
    """What a CLIP tower gives for an image (others give all their tokens). `embedding`: the image embedding (sum,
    Combiner). `all`: also projected tokens (cross-attention). `unprojected`: also the last block's patches as they are
    (pseudo-words)."""
    vision_model: VisionTowerConfig = VisionTowerConfig()
    """Sizes of a trained vision tower."""
    transform: TransformConfig = TransformConfig()
    """How a trained vision tower's images are prepared; `size` is the tower's image size."""
    image_mode: Literal["", "target_pad", "squash", "center_crop"] = ""
    """How images become square for fetched weights; empty: as their own files say. SPRC and PTHA: `target_pad`."""
    vision_training: VisionTrainingConfig = VisionTrainingConfig()
    """Pretraining of the vision tower."""
    language_model: LanguageModelConfig = LanguageModelConfig()
    """Sizes of a trained language model."""
    language_training: LanguageTrainingConfig = LanguageTrainingConfig()
    """Text-only pretraining of the language model."""
    corpus: Literal["shapes", "data"] = "shapes"
    """What a language model is trained on: the embedded world's grammar, or texts and captions of `data`."""
    data: DataConfig = DataConfig()
    """Images, captions and texts; read only by `vision_training.objective=captions` and `corpus=data`."""
    limits: ImageLimits = ImageLimits()
    """Limits on images that are read."""
    device: Effort[str] = "cpu"
    """Where the towers are trained."""
    out: Place = "@towers"
    """Towers artifact (path or URI)."""
