"""Configuration of the index and of one query. No torch, no ray."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from cirray.core.config import Config
from cirray.core.fields import Common, Effort, Known, Place
from cirray.core.places import Run
from cirray.data.config import DataConfig, ImageLimits
from cirray.generators.rerankers.config import RerankChoice
from cirray.index.config import IndexBackend
from cirray.pipelines.cluster.config import PoolConfig, RayConfig


def short_name(place: str) -> str:
    """The last part of a path, or a whole hub id or name of open_clip, as part of an artifact's name."""
    path = place.partition("?")[0].rstrip("/")
    is_path = path.startswith(("/", "~", ".", "@")) or "://" in path or path.count("/") > 1
    return re.sub(r"[^A-Za-z0-9._]+", "-", path.rsplit("/", 1)[-1] if is_path else path).strip("-.") or "here"


Named = Annotated[str, Known("sum", "slerp", "text", "image", "joint")]


class ModelRun(Run):
    """Open published weights as a checkpoint, without training."""

    source: Place
    """See `IndexRun.model`."""
    composition: Named = ""
    """See `IndexRun.composition`."""
    weight: float | None = Field(None, ge=0, le=1)
    """See `IndexRun.weight`."""
    out: Place
    """Checkpoint artifact to write."""


class IndexRun(Run):
    """Embed a gallery with a model and build its index."""

    model: Place = ""
    """Model without training, in place of `checkpoint`. A folder or hub id of CLIP, SigLIP or BGE-VL (transformers'
    layout), or of a model of sentence-transformers that reads pictures and texts, a model of open_clip
    (`ViT-B-32/laion2b_s34b_b79k`, `hf-hub:OWNER/NAME`, `open_clip:NAME=FILE`), or a checkpoint or export. It is opened
    once as a checkpoint below `root`, which every other stage reads."""
    composition: Named = ""
    """How `model` makes a query of picture and text; empty: `joint` where it reads both together, else `sum`."""
    weight: float | None = Field(None, ge=0, le=1)
    """The text's usual share in sum and slerp: 0 is the picture alone, 1 the text alone; null: 0.5 in sum, 0.8 in
    slerp. Every query may have its own."""
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
    metadata: Place = ""
    """File with columns about the images (`.parquet`, `.csv`, `.tsv`, `.jsonl`), which searches then filter by and
    answer with. Its column `id` (or `image_id`, `image`, `file_name`, `filename`, `file`, `path`, `name`) holds their
    ids or file names."""
    living: bool = False
    """Write a gallery that is added to and removed from while it is searched (`cirray index add`, `cirray serve
    --writes`) instead of a frozen index. Once it is there, the command brings it up to date with its folder."""
    index: Common[IndexBackend] = IndexBackend()
    """What searches the gallery: `faiss`, or `exact` (a scan)."""
    target_recall: float | None = Field(None, gt=0, le=1)
    """In place of `index`: measure kinds of FAISS index on these vectors and build the quickest one that finds this
    share of the true best ten answers, such as 0.99."""
    thumbnail_size: int = Field(256, ge=0, le=1024)
    """Longest side in pixels of the pictures kept in the index for the web page; smaller originals keep their size, and
    0 keeps no pictures."""
    reference_features_gb: float = Field(1.0, ge=0.0)
    """Largest size in GB of the vision features kept beside the index, so that a reference picked from the gallery is
    not encoded again; a larger gallery goes through its thumbnails."""
    limits: ImageLimits = ImageLimits()
    """Limits on images."""
    batch: Effort[int] = Field(8, ge=1)
    """Images in one pass through the models; a GPU takes some hundred."""
    threads: Effort[int] = Field(0, ge=0)
    """Cores that decode and encode in this process; 0: all that it may use."""
    shard: int = Field(256, ge=1)
    """Images per part. A killed run repeats only the parts that it did not finish."""
    pool: Effort[PoolConfig | None] = None
    """Ray actors that encode parts; null encodes in this process, which is quicker for some thousands of images."""
    device: Effort[str] = "cpu"
    """Where the models run."""
    ray: Effort[RayConfig] = RayConfig()
    out: Place = "@index"
    """Where the index is written (path or URI); with `model`, `@indexes/IMAGES-MODEL` where nothing else is said, and
    `@gallery`, or `@galleries/IMAGES-MODEL`, with `living`."""

    @model_validator(mode="after")
    def _one_choice(self) -> "IndexRun":
        if self.target_recall is not None and "index" in self.model_fields_set:
            raise ValueError("target_recall chooses the index by measurement; leave out `index`, or target_recall")
        return self

    @model_validator(mode="before")
    @classmethod
    def _named(cls, tree: Any) -> Any:
        if not isinstance(tree, Mapping) or "out" in tree:
            return tree
        living = str(tree.get("living", "")).lower() in ("true", "1", "yes", "on")
        if not tree.get("model"):
            return {**tree, "out": "@gallery"} if living else tree
        said = [tree.get("images") or "features", *(tree.get(name) for name in ("model", "composition", "weight"))]
        name = "-".join(short_name(str(part)) for part in said if part not in (None, ""))
        return {**tree, "out": f"@{'galleries' if living else 'indexes'}/{name}"}


Box = tuple[float, float, float, float]


class SearchReference(Config):
    """A picture of a query."""

    image: Place = ""
    """Image file, or"""
    id: str = ""
    """id of a gallery image."""
    box: Box | None = None
    """x, y, width, height of the part that is meant, in shares of the upright picture (0 to 1) or in its pixels."""
    weight: float = Field(1.0, gt=0)
    """Its share among the references."""


class Unwanted(Config):
    """What the answers should not look like: a text, an image file, or a gallery image."""

    text: str = ""
    """What is not wanted in words, for models that read a text alone."""
    image: Place = ""
    """Image file."""
    id: str = ""
    """Id of a gallery image."""
    weight: float = Field(0.5, ge=0, le=1)
    """How much of its vector is taken away."""


class SearchRun(Run):
    """Answer one composed query."""

    checkpoint: Place = "@checkpoint"
    """Checkpoint artifact. Where none is named: the one that the index was made with."""
    index: Place = "@index"
    """Index artifact. Where none is named: the last one that `cirray index` made below `root`."""
    url: Effort[str] = ""
    """Ask the service at this address (`http://127.0.0.1:8000`), which has a checkpoint and an index of its own."""
    gallery: Effort[str] = ""
    """With `url`: which of its galleries is asked, by name; empty: the one that it asks where none is named."""
    image: Place = ""
    """Image file of the reference; without a reference, the text alone is searched."""
    id: str = ""
    """Id of a gallery image as the reference, in place of `image`."""
    text: str = ""
    """What to change in the reference; empty: images like the reference are searched."""
    weight: float | None = Field(None, ge=0, le=1)
    """The text's share: 0 is the picture alone, 1 the text alone; null: the model's own."""
    k: int = Field(10, ge=1)
    """Number of answers."""
    offset: int = Field(0, ge=0)
    """Answers that are passed over."""
    filter: str = ""
    """Which images may be answered, by their metadata: `price < 50 and category in ["shoes", "bags"]`."""
    fields: tuple[str, ...] = ()
    """Metadata columns to show with the answers; `*` is all of them."""
    box: Box | None = None
    """x, y, width, height of the part of the reference that is meant, in shares (0 to 1) or in pixels."""
    references: tuple[SearchReference, ...] = ()
    """Several references with weights, in place of `image` and `id`: `[{id: a, weight: 2}, {image: b.jpg}]`."""
    unwanted: Unwanted = Unwanted()
    """What the answers should not look like: `unwanted.text=red`."""
    exclude: tuple[str, ...] = ()
    """Ids that are not answered."""
    rerank: RerankChoice | None = None
    """Score the first answers again: `rerank=matching`, `rerank.kind=lmm`."""
    out: Place = ""
    """Page with the pictures; empty: `cirray-search.html` here."""

    @model_validator(mode="after")
    def _reranked_here(self) -> "SearchRun":
        if self.url and self.rerank:
            raise ValueError("a service reranks as it was started (cirray serve rerank=...); leave out rerank, or url")
        return self
