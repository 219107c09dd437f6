"""Configuration of the index and of one query. No torch, no ray."""

from pydantic import Field

from cirray.core.config import Config
from cirray.core.fields import Effort, Place
from cirray.data.config import DataConfig, ImageLimits
from cirray.index.config import IndexConfig
from cirray.pipelines.cluster.config import PoolConfig, RayConfig


class IndexRun(Config):
    """Embed a gallery with a trained encoder and build its index."""

    checkpoint: Place = "~/cirray/quickstart/checkpoint"
    """Checkpoint artifact whose encoder makes the vectors."""
    images: Place | None = None
    """Folder of pictures to index, found by content, links followed.

    An id is the path below the folder, without suffix where that is unique. What cannot be read is
    rejected with a reason and counted; files that are no pictures by their names are left out.
    """
    features: tuple[Place, ...] = ("~/cirray/quickstart/features",)
    """Without `images`: features artifacts, made by the checkpoint's vision tower, that hold the gallery."""
    data: DataConfig | None = DataConfig()
    """With `features`: the data set whose gallery is indexed and whose files give the pictures; null indexes every
    stored image, without pictures."""
    index: IndexConfig = IndexConfig()
    """How the gallery is searched."""
    limits: ImageLimits = ImageLimits()
    """Caps on the pictures."""
    batch: Effort[int] = Field(64, ge=1)
    """Images in one pass through the models."""
    shard: int = Field(1024, ge=1)
    """Images of one part; a killed run goes on after its last finished part."""
    pool: Effort[PoolConfig | None] = None
    """Ray actors that encode parts; null encodes in this process, which is quicker for some thousands of images."""
    device: Effort[str] = "cpu"
    """Where the models run."""
    ray: Effort[RayConfig] = RayConfig()
    out: Place = "~/cirray/quickstart/index"
    """Where the index is written (path or URI)."""


class SearchRun(Config):
    """Answer one composed query."""

    checkpoint: Place = "~/cirray/quickstart/checkpoint"
    """Checkpoint artifact."""
    index: Place = "~/cirray/quickstart/index"
    """Index artifact built with it."""
    image: Place = ""
    """A picture file as the reference."""
    id: str = ""
    """Or the id of a gallery image."""
    text: str
    """What to change."""
    k: int = Field(10, ge=1)
    """Answers wanted."""
    out: Place = ""
    """Where the page with the pictures goes; default `cirray-search.html` here."""
