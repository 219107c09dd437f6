"""Roots of the configuration tree of the pipelines, one class a stage. No torch, no ray."""

from pydantic import Field

from cirray.core.config import Config
from cirray.data.config import DataConfig, ImageLimits
from cirray.index.config import IndexConfig


class IndexRun(Config):
    """Embed a gallery with a trained encoder and build its index."""

    checkpoint: str = "~/cirray/quickstart/checkpoint"
    """Checkpoint artifact whose encoder makes the vectors."""
    images: str | None = None
    """Folder of pictures to index, any names and sizes; unreadable ones are rejected with a reason and counted."""
    features: str | None = "~/cirray/quickstart/features"
    """Without `images`: feature artifact of the checkpoint's vision tower."""
    data: DataConfig | None = DataConfig()
    """With `features`: the data set whose gallery is indexed and whose files give the pictures; null indexes every
    stored image, without pictures."""
    index: IndexConfig = IndexConfig()
    """How the gallery is searched."""
    limits: ImageLimits = ImageLimits()
    """Caps on the pictures."""
    batch: int = Field(64, ge=1)
    """Images in one pass through the models."""
    shard: int = Field(1024, ge=1)
    """Images a finished part holds; a killed run goes on after its last finished part."""
    workers: int = Field(0, ge=0)
    """Ray actors that encode parts; 0 encodes in this process."""
    cpus_per_worker: float = Field(1.0, ge=0)
    """CPUs Ray sets aside for each actor."""
    gpus_per_worker: float = Field(0.0, ge=0)
    """GPUs Ray sets aside for each actor."""
    device: str = "cpu"
    """Where the models run."""
    out: str = "~/cirray/quickstart/index"
    """Where the index is written (path or URI)."""
