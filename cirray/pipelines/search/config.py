"""Configuration of the index and of one query. No torch, no ray."""

from pydantic import Field

from cirray.core.fields import Common, Effort, Place
from cirray.core.places import Run
from cirray.data.config import DataConfig, ImageLimits
from cirray.index.config import IndexBackend
from cirray.pipelines.cluster.config import PoolConfig, RayConfig


class IndexRun(Run):
    """Embed a gallery with a trained encoder and build its index."""

    checkpoint: Place = "@checkpoint"
    """Checkpoint artifact whose encoder makes the vectors."""
    images: Place | None = None
    """Folder of images to index. They are found by content, links are followed.

    An id is the path below the folder, without suffix where that is unique. What cannot be read is
    rejected with a reason and counted; files that are no pictures by their names are left out.
    """
    features: tuple[Place, ...] = ("@features",)
    """Features artifacts of the gallery, where no `images` are given. Made by the checkpoint's vision tower."""
    data: DataConfig | None = DataConfig()
    """With `features`: the data set whose gallery is indexed and whose files give the pictures; null indexes every
    stored image, without pictures."""
    index: Common[IndexBackend] = IndexBackend()
    """What searches the gallery: `faiss`, or `exact` (a scan)."""
    thumbnail_size: int = Field(256, ge=0, le=1024)
    """Longest side in pixels of the pictures kept in the index for the web page; smaller originals keep their size, and
    0 keeps no pictures."""
    reference_features_gb: float = Field(1.0, ge=0.0)
    """Largest size in GB of the vision features kept beside the index, so that a reference picked from the gallery is
    not encoded again; a larger gallery goes through its thumbnails."""
    limits: ImageLimits = ImageLimits()
    """Limits on images."""
    batch: Effort[int] = Field(64, ge=1)
    """Images in one pass through the models."""
    shard: int = Field(1024, ge=1)
    """Images per part. A killed run repeats only the parts that it did not finish."""
    pool: Effort[PoolConfig | None] = None
    """Ray actors that encode parts; null encodes in this process, which is quicker for some thousands of images."""
    device: Effort[str] = "cpu"
    """Where the models run."""
    ray: Effort[RayConfig] = RayConfig()
    out: Place = "@index"
    """Where the index is written (path or URI)."""


class SearchRun(Run):
    """Answer one composed query."""

    checkpoint: Place = "@checkpoint"
    """Checkpoint artifact."""
    index: Place = "@index"
    """Index artifact built with it."""
    url: Effort[str] = ""
    """Ask the service at this address (`http://127.0.0.1:8000`), which has a checkpoint and an index of its own."""
    image: Place = ""
    """Image file of the reference."""
    id: str = ""
    """Id of a gallery image as the reference, in place of `image`."""
    text: str
    """What to change."""
    k: int = Field(10, ge=1)
    """Number of answers."""
    out: Place = ""
    """Page with the pictures; empty: `cirray-search.html` here."""
