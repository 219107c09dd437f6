"""Configuration of a gallery that is written to. No torch, no ray."""

from typing import Literal

from pydantic import Field, model_validator

from cirray.core.fields import Effort, Place
from cirray.core.places import Run
from cirray.data.config import ImageLimits
from cirray.index.config import IndexBackend

ColumnKind = Literal["text", "texts", "number", "integer", "flag", "date", "time"]


class GalleryRun(Run):
    """Make a gallery that is written to while it is searched, from an index or empty."""

    index: Place | None = "@index"
    """Index whose images it begins with; where none is named, the last one made below `root`. null: it begins empty."""
    checkpoint: Place = "@checkpoint"
    """Checkpoint whose encoder makes the vectors. Where none is named: the one that the index was made with."""
    columns: dict[str, ColumnKind] = {}
    """Metadata columns by name: `{price: number, tags: texts}`. A gallery that is there already gets those that it has
    not, beside a running service."""
    backend: IndexBackend | None = None
    """What searches it; null: what searches the index."""
    thumbnail_size: int | None = Field(None, ge=0, le=1024)
    """Longest side in pixels of its pictures, 0: none; null: the index's, or 256."""
    out: Place = "@gallery"
    """Where the gallery is made (path or URI)."""


class AddRun(Run):
    """Add pictures or vectors to a gallery, beside a running service. An id that is there is replaced."""

    gallery: Place = "@gallery"
    """The gallery."""
    source: Place = ""
    """A folder of pictures, one picture, or a Parquet file (path or URI) with the columns `id`, `vector`, and those of
    metadata. Of a folder only what is new or changed is encoded."""
    url: str = ""
    """Service that adds the Parquet file at `source` itself, which is then a place that the service may read
    (`load_from`); empty: this process adds."""
    into: str = ""
    """Which of the galleries of the service at `url`; empty: its default."""
    prefix: str = ""
    """Before the id of each picture: `shoes/`."""
    metadata: Place = ""
    """File with columns about the pictures, as `cirray index` takes it; a column that the gallery has not is added."""
    gone: bool = False
    """Remove images of the gallery that were made of files of this folder which are no more."""
    checkpoint: Place = ""
    """The encoder, where it is no longer where the gallery was made with it."""
    limits: ImageLimits = ImageLimits()
    """Limits on images."""
    batch: Effort[int] = Field(64, ge=1)
    """Images in one pass through the models, and in one commit."""
    device: Effort[str] = "cpu"
    """Where the models run."""


class RemoveRun(Run):
    """Remove images from a gallery, beside a running service."""

    gallery: Place = "@gallery"
    """The gallery."""
    ids: tuple[str, ...] = ()
    """Ids of the images."""
    where: str = ""
    """A filter over the metadata: every image it names is removed, such as `price > 100 or sold`."""

    @model_validator(mode="after")
    def _one(self) -> "RemoveRun":
        if bool(self.ids) == bool(self.where) and self.model_fields_set & {"ids", "where"}:
            raise ValueError("give either ids or where, which say the images to remove")
        return self


class CompactRun(Run):
    """Write the small files of a gallery together and drop what is outdated, beside a running service."""

    gallery: Place = "@gallery"
    """The gallery."""
    keep_s: Effort[float] = Field(60.0, ge=0)
    """Keep what was outdated in the last so many seconds."""


class UseRun(Run):
    """Let a name stand for a gallery or an index; a service that serves the name goes over to it without a pause."""

    index: Place = "@index"
    """Gallery or index; where none is named, the last one made below `root`."""
    checkpoint: Place = "@checkpoint"
    """What queries it. Where none is named: what it was made with."""
    name: str = Field("live", min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The name."""
    back: bool = False
    """The name stands again for what it stood for before."""
