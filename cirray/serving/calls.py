"""What can be asked of the service: of each question its request, and how its answer is read.

The clients in `cirray.serving.client` have a method for each function here, with the same arguments: it sends the
request, once more where that may help, and returns what the answer says.
"""

import base64
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx

from cirray.core.errors import ServingError
from cirray.queries import PLAIN, Further, Reference
from cirray.types import Ranking, StepTimes

ReadT = TypeVar("ReadT")
Picture = str | Path | bytes
"""A picture file's path or its bytes, or its URL where the service takes URLs."""


@dataclass(frozen=True)
class Answer:
    """A ranking with the versions of index and model; `ranking.times` are the server's."""

    ranking: Ranking
    index_digest: str
    encoder_digest: str
    request_id: str
    metadata: tuple[Mapping[str, Any], ...] = ()
    """Values of the columns that were asked for, one mapping an answer."""


@dataclass(frozen=True)
class Call(Generic[ReadT]):
    """One question: a request that may be repeated, and what reads its answer."""

    method: str
    path: str
    read: Callable[[httpx.Response], ReadT]
    content: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of httpx's `request`."""


def search(
    text: str | None = None, image: Picture | None = None, gallery_id: str | None = None, k: int | None = None,
    exclude_reference: bool = True, weight: float | None = None, further: Further = PLAIN, fields: Sequence[str] = (),
) -> Call[Answer]:  # fmt: skip
    """Search by an image (path or bytes) or a gallery id, and a text that says what to change; or by one alone.

    `weight` is the text's share, 0 to 1; None: the model's own. `further` holds several references, a box, what is
    not wanted, a filter, excluded ids and an offset. `fields` are the metadata columns to return; `*` is all.

    Raises:
        ServingError: with the server's own sentence, or when it cannot be reached.
    """
    asked = _query_fields(text, gallery_id, k, exclude_reference, weight, further, fields)
    read = lambda reply: _answer(reply.json())  # noqa: E731
    if image is None or _is_url(image):
        return Call("POST", "/v1/search", read, {"json": asked if image is None else {**asked, "image": image}})
    form = {name: value if isinstance(value, str) else json.dumps(value) for name, value in asked.items()}
    return Call("POST", "/v1/search", read, {"data": form, "files": {"image": ("image", _bytes(image))}})


def search_many(queries: Sequence[Mapping[str, Any]]) -> Call[list[Answer | ServingError]]:
    """Answer several queries in one call: for each its answer, or the error that `search` would raise.

    Args:
        queries: arguments of `search` by name, for each query.

    Raises:
        ServingError: when the whole call is refused, or the server cannot be reached.
    """
    bodies = [_batch_fields(**query) for query in queries]
    return Call("POST", "/v1/search:batch", _answers, {"json": {"queries": bodies}})


def facets(filter: str | None = None) -> Call[Mapping[str, Any]]:
    """What the metadata columns hold, among the images that pass a filter."""
    return Call("GET", "/v1/facets", _json, {"params": {} if filter is None else {"filter": filter}})


def examples(gallery_id: str | None = None) -> Call[list[Mapping[str, Any]]]:
    """Queries to try (`gallery_id`, `text`), or the data set's own texts about one gallery image."""
    params = {} if gallery_id is None else {"gallery_id": gallery_id}
    return Call("GET", "/v1/examples", lambda reply: reply.json()["queries"], {"params": params})


def gallery(limit: int = 60, offset: int = 0) -> Call[list[str]]:
    """Gallery ids in order."""
    params = {"limit": limit, "offset": offset}
    return Call("GET", "/v1/gallery", lambda reply: [item["id"] for item in reply.json()["items"]], {"params": params})


def image(image_id: str, size: str = "small") -> Call[bytes]:
    """Encoded picture of a gallery image: `small` (its thumbnail), `medium` or `large`."""
    asked = {} if size == "small" else {"params": {"size": size}}
    return Call("GET", _image_path(image_id), lambda reply: reply.content, asked)


def put(image_id: str, image: Picture, metadata: Mapping[str, Any] | None = None) -> Call[int]:
    """Add or replace an image (path or bytes) of a gallery that is written to; returns the version that shows it.

    Raises:
        ServingError: with the server's own sentence.
    """
    sent = ("image", _bytes(image)) if not _is_url(image) else (None, str(image))
    parts = {"image": sent, "metadata": (None, json.dumps(dict(metadata or {})))}
    return Call("PUT", _image_path(image_id), _version, {"files": parts})


def delete(image_id: str) -> Call[int]:
    """Remove an image; one that is not there is no error. Returns the version that shows it."""
    return Call("DELETE", _image_path(image_id), _version)


def add(items: Iterable[Mapping[str, Any]]) -> Call[int]:
    """Add, replace or remove many images in one request; returns the version that shows them.

    Args:
        items: of each its `id`, and `image` (path or bytes), `vector` (numbers) or `delete` (true); perhaps `metadata`.
    """
    lines = "\n".join(json.dumps(_line(item)) for item in items)
    kind = {"content-type": "application/x-ndjson"}
    return Call("POST", "/v1/images", _version, {"content": lines, "headers": kind})


def load(uri: str, offset: int = 0, limit: int = 100_000) -> Call[Mapping[str, Any]]:
    """Add rows of a Parquet file that the service reads itself, and may (`load_from`).

    Returns what was `written`, how many rows there are in `total`, and where the next request begins (`next`; None:
    all are there).
    """
    return Call("POST", "/v1/images:load", _json, {"json": {"uri": uri, "offset": offset, "limit": limit}})


def version() -> Call[Mapping[str, Any]]:
    """What is being served, and its limits."""
    return Call("GET", "/version", _json)


def galleries() -> Call[list[Mapping[str, Any]]]:
    """The galleries that this key may ask: of each its `name`, how many `images`, and whether it is `writable`."""
    return Call("GET", "/v1/galleries", lambda reply: reply.json()["galleries"])


def ready() -> Call[None]:
    """Wait, as far as retries go, until model and index answer a query.

    Raises:
        ServingError: when they do not.
    """
    return Call("GET", "/readyz", lambda reply: None)


def metrics() -> Call[str]:
    """The service's metrics in Prometheus' text format."""
    return Call("GET", "/metrics", lambda reply: reply.text)


def refused(status: int, detail: str) -> ServingError:
    """The server's own sentence as an error."""
    return ServingError(f"The service answered {status}: {detail}")


def _image_path(image_id: str) -> str:
    return f"/v1/images/{quote(image_id, safe='')}"


def _json(reply: httpx.Response) -> Any:
    return reply.json()


def _version(reply: httpx.Response) -> int:
    return int(reply.json()["version"])


def _answers(reply: httpx.Response) -> list[Answer | ServingError]:
    return [
        _answer(item["answer"]) if item["answer"] else refused(item["problem"]["status"], item["problem"]["detail"])
        for item in reply.json()["answers"]
    ]


def _line(item: Mapping[str, Any]) -> dict[str, Any]:
    return {**item, "image": _coded(item["image"])} if "image" in item else dict(item)


def _is_url(image: Any) -> bool:
    return isinstance(image, str) and image.lower().startswith(("http://", "https://"))


def _coded(image: Any) -> str:
    return str(image) if _is_url(image) else base64.b64encode(_bytes(image)).decode()


def _answer(body: Mapping[str, Any]) -> Answer:
    ids, scores = [hit["id"] for hit in body["hits"]], [hit["score"] for hit in body["hits"]]
    times = StepTimes(**body["times_ms"]) if "times_ms" in body else None
    ranking = Ranking(body["request_id"], tuple(ids), tuple(scores), times)
    metadata = tuple(hit.get("metadata", {}) for hit in body["hits"])
    return Answer(ranking, body["index_digest"], body["encoder_digest"], body["request_id"], metadata)


def _batch_fields(
    text: str | None = None, image: Picture | None = None, gallery_id: str | None = None, k: int | None = None,
    exclude_reference: bool = True, weight: float | None = None, further: Further = PLAIN, fields: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    asked = _query_fields(text, gallery_id, k, exclude_reference, weight, further, fields)
    return asked if image is None else {**asked, "image": _coded(image)}


def _query_fields(
    text: str | None, gallery_id: str | None, k: int | None, exclude_reference: bool, weight: float | None,
    further: Further, fields: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """Fields of a query as JSON, without those that say nothing."""
    negative = further.negative
    unwanted = None if negative is None else {**_picture(negative.picture), "weight": negative.weight}
    if negative is not None and negative.text is not None:
        unwanted = {**(unwanted or {}), "text": negative.text}
    told = {
        "text": text, "gallery_id": gallery_id, "k": k, "weight": weight, "box": further.box, "negative": unwanted,
        "references": [_picture(item) for item in further.references] or None, "filter": further.filter,
        "exclude": list(further.exclude) or None, "offset": further.offset or None, "fields": list(fields) or None,
    }  # fmt: skip
    return {"exclude_reference": exclude_reference, **_without_none(told)}


def _picture(item: Reference | None) -> dict[str, Any]:
    if item is None:
        return {}
    told: dict[str, Any] = {"gallery_id": item.gallery_id, "box": item.box, "weight": item.weight}
    if item.image is not None:
        told["image"] = _coded(item.image)
    return _without_none(told)


def _without_none(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in tree.items() if value is not None}


def _bytes(image: Any) -> bytes:
    """The encoded picture of a path or bytes."""
    if isinstance(image, bytes):
        return image
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise ServingError(f"Image {str(image)!r} cannot be read: {error.strerror}.") from None
    except TypeError:
        raise ServingError(
            f"A picture for the service is a path or encoded bytes, not {type(image).__name__}."
        ) from None
