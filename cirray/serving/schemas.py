"""What goes over the wire."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class SearchRequest(_Wire):
    """JSON body of a search. One of `image` and `gallery_id` is the reference; without one the text is searched."""

    text: str | None = None
    """What to change in the reference, 1 to 512 characters; absent: images like the reference are searched."""
    image: str | None = None
    """Reference image, base64 of a picture file: JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF and others."""
    gallery_id: str | None = None
    """Id of a gallery image as the reference."""
    k: int | None = Field(None, ge=1)
    """Answers wanted; the server's default when absent, capped by the server."""
    exclude_reference: bool = True
    """Leave the reference out of its own answers (gallery ids only)."""
    weight: float | None = Field(None, ge=0, le=1)
    """The text's share: 0 is the picture alone, 1 the text alone; the model's own when absent."""


class SearchForm(_Wire):
    """Multipart body of a search: the same fields with the picture as an uploaded file."""

    text: str | None = None
    """What to change in the reference, 1 to 512 characters; absent: images like the reference are searched."""
    image: str | None = Field(None, json_schema_extra={"type": "string", "format": "binary"})
    """Reference image file."""
    gallery_id: str | None = None
    """Id of a gallery image as the reference."""
    k: int | None = Field(None, ge=1)
    """Answers wanted."""
    exclude_reference: bool = True
    """Leave the reference out of its own answers."""
    weight: float | None = Field(None, ge=0, le=1)
    """The text's share."""


class Hit(_Wire):
    """One answer."""

    id: str
    """Id of the image in the gallery."""
    score: float
    """Similarity, -1 to 1; higher is better."""
    image: str | None
    """Path of its picture, or null when the index keeps none."""
    width: int | None
    """Width of that picture in pixels, or null."""
    height: int | None
    """Its height."""


class Times(_Wire):
    """Milliseconds of the steps of a search. Queries answered together share all but `decode`: a step runs once."""

    decode: float
    """Reading and transforming the reference picture."""
    image: float
    """Vision tower and the reference's part of the model."""
    text: float
    """Text encoder and fusion."""
    rank: float
    """Search in the index."""


class SearchResponse(_Wire):
    """Answers, best first, and what gave them."""

    hits: list[Hit]
    """At most k answers."""
    index_digest: str
    """Version of the index that answered."""
    encoder_digest: str
    """Version of the model that answered."""
    took_ms: float
    """Time inside the server in milliseconds, waiting included."""
    times_ms: Times
    """What the steps of it took."""
    request_id: str
    """Id of the request (header X-Request-ID)."""


class GalleryItem(_Wire):
    """One gallery image."""

    id: str
    """Its id."""
    image: str | None
    """Path of its picture, or null when the index keeps none."""
    width: int | None
    """Width of that picture in pixels, or null."""
    height: int | None
    """Its height."""


class GalleryPage(_Wire):
    """A part of the gallery in id order."""

    items: list[GalleryItem]
    """At most `limit` images."""
    total: int
    """Images in the gallery."""
    offset: int
    """Position of the first item."""
    limit: int
    """Most items of this page."""


class ImageForm(_Wire):
    """Multipart body of one image."""

    image: str = Field(json_schema_extra={"type": "string", "format": "binary"})
    """Picture file."""
    metadata: str | None = None
    """JSON object of values by column."""


class ImageLine(_Wire):
    """One line of many images: `image`, `vector` or `delete`."""

    id: str
    """Id in the gallery; one that is there is replaced."""
    image: str | None = None
    """Base64 of a picture file."""
    vector: list[float] | None = None
    """Its vectors in one row, as this gallery's model makes them."""
    delete: bool = False
    """Remove the image."""
    metadata: dict[str, Any] = {}
    """Values by column."""


class Written(_Wire):
    """What is durable now."""

    written: int
    """Images added or replaced."""
    removed: int
    """Images removed."""
    version: int
    """Version of the gallery that shows it."""
    request_id: str
    """Id of the request."""


class ExampleQuery(_Wire):
    """One query to try."""

    gallery_id: str
    """Id of the gallery image that is its reference."""
    text: str
    """What to change in it."""
    image: str | None
    """Path of the reference's picture, or null when the index keeps none."""


class Examples(_Wire):
    """Queries to try; empty when the index was made of pictures alone."""

    queries: list[ExampleQuery]
    """The clearest first."""


class Health(_Wire):
    """State of the service."""

    status: str
    """`ok` (alive) or `ready` (the model and the index have just answered a probe)."""


class Version(_Wire):
    """What is being served, and its limits."""

    cirray: str
    """Version of the package."""
    index_digest: str
    """Digest of the index."""
    encoder_digest: str
    """Digest of the encoder."""
    gallery_size: int
    """Images in the gallery."""
    default_k: int
    """Answers when a request does not say."""
    max_k: int
    """Most answers of one request."""
    max_text: int
    """Most characters of a text."""
    max_body_bytes: int
    """Most bytes of a request."""
    max_pixels: int
    """Most pixels of a reference image."""
    composition: str
    """How the model makes a query of picture and text."""
    compositions: list[str]
    """Compositions without training that the model knows; empty for one that was trained for its own."""
    weight: float | None
    """The text's usual share, which a search may change; null: its composition has none."""


class Problem(_Wire):
    """An error (RFC 9457, application/problem+json)."""

    type: str
    """`urn:cirray:problem:NAME`, stable for programs."""
    title: str
    """The kind of error in words."""
    status: int
    """HTTP status."""
    detail: str
    """What happened and what would be accepted."""
    request_id: str
    """Id of the request."""
