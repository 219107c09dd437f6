"""What goes over the wire."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from cirray.queries import MAX_EXCLUDED, MAX_REFERENCES, MAX_WEIGHT

MAX_QUERIES = 64
"""Most queries of one batch."""
_Box = Annotated[list[float], Field(min_length=4, max_length=4)]


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class PictureQuery(_Wire):
    """A picture of a query: one of `image` and `gallery_id`."""

    image: str | None = None
    """Base64 of a picture file, or its URL where the service takes URLs."""
    gallery_id: str | None = None
    """Id of a gallery image."""
    box: _Box | None = None
    """x, y, width, height of the part that is meant, in shares of the upright picture (0 to 1) or in its pixels."""
    weight: float = Field(1.0, gt=0, le=MAX_WEIGHT)
    """Its share among the references."""


class NegativeQuery(_Wire):
    """What the answers should not look like: one of `text`, `image` and `gallery_id`."""

    text: str | None = None
    """What is not wanted, 1 to 512 characters; for models that read a text alone."""
    image: str | None = None
    """Base64 of a picture file, or its URL where the service takes URLs."""
    gallery_id: str | None = None
    """Id of a gallery image."""
    box: _Box | None = None
    """The part of the picture that is meant."""
    weight: float = Field(0.5, ge=0, le=1)
    """How much of its vector is taken away."""


class _Query(_Wire):
    """What both bodies of a search have."""

    text: str | None = None
    """What to change in the reference, 1 to 512 characters; absent: images like the reference are searched."""
    gallery_id: str | None = None
    """Id of a gallery image as the reference."""
    box: _Box | None = None
    """x, y, width, height of the part of the reference that is meant, in shares of the upright picture (0 to 1) or in
    its pixels; of a gallery image in shares."""
    references: list[PictureQuery] = Field([], max_length=MAX_REFERENCES)
    """Several references with weights, in place of the single one; the query is the weighted mean of theirs."""
    negative: NegativeQuery | None = None
    """What the answers should not look like."""
    weight: float | None = Field(None, ge=0, le=1)
    """The text's share: 0 is the picture alone, 1 the text alone; the model's own when absent."""
    filter: str | None = None
    """Which images may be answered, e.g. `price < 50 and category in ["shoes", "bags"]`; see `/v1/facets`."""
    exclude: list[str] = Field([], max_length=MAX_EXCLUDED)
    """Ids that are not answered."""
    exclude_reference: bool = True
    """Leave the references out of their own answers (gallery ids only)."""
    k: int | None = Field(None, ge=1)
    """Answers wanted; the server's default when absent, capped by the server."""
    offset: int = Field(0, ge=0)
    """Answers that are passed over."""
    fields: list[str] = Field([], max_length=64)
    """Metadata columns of the answers to return; `*` is all of them."""


class SearchRequest(_Query):
    """JSON body of a search. One of `image` and `gallery_id` is the reference; without one the text is searched."""

    image: str | None = None
    """Reference image, base64 of a picture file (JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF and others), or its URL where
    the service takes URLs (`image_hosts`)."""


class SearchForm(_Query):
    """Multipart body of a search: the same fields with the picture as an uploaded file; lists and objects are JSON."""

    image: str | None = Field(None, json_schema_extra={"type": "string", "format": "binary"})
    """Reference image file."""


class BatchRequest(_Wire):
    """Several queries in one call."""

    queries: list[SearchRequest] = Field(min_length=1, max_length=MAX_QUERIES)
    """The queries; each is answered, or refused, by itself."""


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
    metadata: dict[str, Any]
    """Values of the columns that `fields` asks for."""


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
    rerank: float
    """Scoring the first answers again; 0 where nothing does."""


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
    searched: float
    """Share of the gallery that was searched: 1, or less where a searcher is away and the service answers without."""
    request_id: str
    """Id of the request (header X-Request-ID)."""


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


class BatchAnswer(_Wire):
    """What became of one query of a batch: one of the two is null."""

    answer: SearchResponse | None
    """Its answer."""
    problem: Problem | None
    """Why it has none."""


class BatchResponse(_Wire):
    """The answers of a batch."""

    answers: list[BatchAnswer]
    """One for each query, in order."""
    request_id: str
    """Id of the request (header X-Request-ID)."""


class FacetValue(_Wire):
    """A value of a column."""

    value: Any
    """The value; dates as text."""
    count: int
    """Images that have it."""


class FacetColumn(_Wire):
    """What a metadata column holds."""

    column: str
    """Its name in filters."""
    kind: str
    """`numbers`, `texts`, `dates` or `true or false`."""
    filled: int
    """Images with a value."""
    values: list[FacetValue]
    """Its values, the most frequent first; empty for a column with more than 50."""
    least: Any
    """Smallest number or date, or null."""
    most: Any
    """Largest number or date, or null."""


class Facets(_Wire):
    """The metadata of the images that pass a filter."""

    images: int
    """How many pass."""
    columns: list[FacetColumn]
    """The columns that filters can name, in their order; none for a gallery without metadata."""
    searched: float
    """Share of the gallery that was looked at; see the answer of a search."""


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
    searched: float
    """Share of the gallery that was looked at; see the answer of a search."""


class ImageForm(_Wire):
    """Multipart body of one image."""

    image: str = Field(json_schema_extra={"type": "string", "format": "binary"})
    """Picture file, or as text its URL where the service takes URLs."""
    metadata: str | None = None
    """JSON object of values by column."""


class ImageLine(_Wire):
    """One line of many images: `image`, `vector` or `delete`."""

    id: str
    """Id in the gallery; one that is there is replaced."""
    image: str | None = None
    """Base64 of a picture file, or its URL where the service takes URLs."""
    vector: list[float] | None = None
    """Its vectors in one row, as this gallery's model makes them."""
    delete: bool = False
    """Remove the image."""
    metadata: dict[str, Any] = {}
    """Values by column."""


class LoadRequest(_Wire):
    """Which rows of a Parquet file are added."""

    uri: str
    """The file, as the service reads it: a path or URI below one of its `load_from`. Its columns are `id`, `vector` and
    those of metadata."""
    offset: int = Field(0, ge=0)
    """Rows that are passed over."""
    limit: int = Field(100_000, ge=1, le=100_000)
    """Most rows of this request."""


class Loaded(_Wire):
    """What is durable now of a Parquet file."""

    written: int
    """Rows added."""
    total: int
    """Rows of the file."""
    next: int | None
    """Offset of the request for the next rows; null: all are there."""
    version: int
    """Version of the gallery that shows them."""
    request_id: str
    """Id of the request."""


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
    """`ok`: the process answers."""


class Ready(_Wire):
    """Whether the service can answer."""

    status: str
    """`ready` (model and index of every gallery have just answered a probe) or `degraded` (they have, but a gallery
    cannot be followed)."""
    faults: list[str]
    """What is degraded."""


class ServedGallery(_Wire):
    """A gallery of the service."""

    name: str
    """Its name in paths: `/v1/galleries/NAME/search`."""
    images: int
    """How many it holds."""
    writable: bool
    """Whether it takes PUT, DELETE and bulk adds."""


class Galleries(_Wire):
    """The galleries of the service."""

    galleries: list[ServedGallery]
    """`default`, which is asked where a path names none, and the others."""
    compare: dict[str, str]
    """Other services that the page may show beside this one: by name, what their routes begin with."""


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
    shapes: list[str]
    """Shapes of query that the model can do."""
    columns: list[str]
    """Columns that filters can name."""
    max_queries: int
    """Most queries of one batch."""
