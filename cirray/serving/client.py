"""A small Python client of the service."""

import base64
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from cirray.core.environ import service_key
from cirray.core.errors import ServingError
from cirray.queries import PLAIN, Further, Reference
from cirray.types import Ranking, StepTimes

_TRY_AGAIN = (429, 502, 503)
_PROBLEM = "application/problem+json"


@dataclass(frozen=True)
class Answer:
    """A ranking with the versions of index and model; `ranking.times` are the server's."""

    ranking: Ranking
    index_digest: str
    encoder_digest: str
    request_id: str
    metadata: tuple[Mapping[str, Any], ...] = ()
    """Values of the columns that were asked for, one mapping an answer."""


class SearchClient:
    """Talks to one service; a context manager.

    Example:
        with SearchClient("http://127.0.0.1:8000") as client:
            answer = client.search("in the middle left add a large cyan diamond", gallery_id="gal-00020-0")
    """

    def __init__(
        self, url: str = "http://127.0.0.1:8000", timeout_s: float = 30.0, retries: int = 3,
        transport: httpx.BaseTransport | None = None, key: str | None = None,
    ) -> None:  # fmt: skip
        """Open a connection pool.

        Args:
            url: where the service listens, with its route prefix if it has one.
            timeout_s: for each request.
            retries: how often to retry: on 429, 502, 503, a refused or cut connection, and Ray's own 500 (a replica
                died).
            transport: another httpx transport, e.g. an application in this process.
            key: the key of a service that needs one; None: the variable CIRRAY_KEY.
        """
        self._url, self._retries = url.rstrip("/"), retries
        shown = service_key() if key is None else key
        headers = {"authorization": f"Bearer {shown}"} if shown else {}
        self._http = httpx.Client(timeout=timeout_s, transport=transport, headers=headers)

    def search(
        self, text: str | None = None, image: str | Path | bytes | None = None, gallery_id: str | None = None,
        k: int | None = None, exclude_reference: bool = True, weight: float | None = None, further: Further = PLAIN,
        fields: Sequence[str] = (),
    ) -> Answer:  # fmt: skip
        """Search by an image (path or bytes) or a gallery id, and a text that says what to change; or by one alone.

        `weight` is the text's share, 0 to 1; None: the model's own. `further` holds several references, a box, what is
        not wanted, a filter, excluded ids and an offset. `fields` are the metadata columns to return; `*` is all.

        Raises:
            ServingError: with the server's own sentence, or when it cannot be reached.
        """
        asked = _query_fields(text, gallery_id, k, exclude_reference, weight, further, fields)
        if image is None:
            return _answer(self._ask("POST", "/v1/search", json=asked).json())
        form = {name: value if isinstance(value, str) else json.dumps(value) for name, value in asked.items()}
        return _answer(self._ask("POST", "/v1/search", data=form, files={"image": ("image", _bytes(image))}).json())

    def search_many(self, queries: Sequence[Mapping[str, Any]]) -> list[Answer | ServingError]:
        """Answer several queries in one call: for each its answer, or the error that `search` would raise.

        Args:
            queries: arguments of `search` by name, for each query.

        Raises:
            ServingError: when the whole call is refused, or the server cannot be reached.
        """
        bodies = [_batch_fields(**query) for query in queries]
        found = self._ask("POST", "/v1/search:batch", json={"queries": bodies}).json()["answers"]
        return [
            _answer(item["answer"])
            if item["answer"]
            else _refused(item["problem"]["status"], item["problem"]["detail"])
            for item in found
        ]

    def facets(self, filter: str | None = None) -> Mapping[str, Any]:
        """What the metadata columns hold, among the images that pass a filter."""
        return self._ask("GET", "/v1/facets", params={} if filter is None else {"filter": filter}).json()

    def image(self, image_id: str) -> bytes:
        """Encoded picture of a gallery image."""
        return self._ask("GET", f"/v1/images/{quote(image_id, safe='')}").content

    def put(self, image_id: str, image: str | Path | bytes, metadata: Mapping[str, Any] | None = None) -> int:
        """Add or replace an image (path or bytes) of a gallery that is written to; returns the version that shows it.

        Raises:
            ServingError: with the server's own sentence.
        """
        picture = _bytes(image)
        form = {"metadata": json.dumps(dict(metadata or {}))}
        path = f"/v1/images/{quote(image_id, safe='')}"
        return int(self._ask("PUT", path, data=form, files={"image": ("image", picture)}).json()["version"])

    def delete(self, image_id: str) -> int:
        """Remove an image; one that is not there is no error. Returns the version that shows it."""
        return int(self._ask("DELETE", f"/v1/images/{quote(image_id, safe='')}").json()["version"])

    def add(self, items: Iterable[Mapping[str, Any]]) -> int:
        """Add, replace or remove many images in one request; returns the version that shows them.

        Args:
            items: of each its `id`, and `image` (base64), `vector` (numbers) or `delete` (true); perhaps `metadata`.
        """
        lines = "\n".join(json.dumps(dict(item)) for item in items)
        kind = {"content-type": "application/x-ndjson"}
        return int(self._ask("POST", "/v1/images", content=lines, headers=kind).json()["version"])

    def gallery(self, limit: int = 60, offset: int = 0) -> list[str]:
        """Gallery ids in order."""
        page = self._ask("GET", "/v1/gallery", params={"limit": limit, "offset": offset}).json()
        return [item["id"] for item in page["items"]]

    def version(self) -> Mapping[str, Any]:
        """What is being served, and its limits."""
        return self._ask("GET", "/version").json()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> "SearchClient":
        """The client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self.close()

    def _ask(self, method: str, path: str, **content: Any) -> httpx.Response:
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            try:
                reply = self._http.request(method, self._url + path, **content)
            except httpx.TransportError as error:
                if last:
                    raise ServingError(f"The service at {self._url!r} cannot be reached: {error}.") from None
                time.sleep(0.2 * 2**attempt)
                continue
            if last or not _may_pass(reply):
                return _checked(reply)
            time.sleep(_pause(reply, attempt))
        raise AssertionError("unreachable: the loop returns or raises on its last turn")


def _may_pass(reply: httpx.Response) -> bool:
    """Whether another try may succeed; every request of this interface may be repeated."""
    written_by_proxy = not reply.headers.get("content-type", "").startswith(_PROBLEM)
    return reply.status_code in _TRY_AGAIN or (reply.status_code in (500, 504) and written_by_proxy)


def _checked(reply: httpx.Response) -> httpx.Response:
    if reply.status_code < 400:
        return reply
    try:
        detail = reply.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = reply.text[:200]
    raise _refused(reply.status_code, detail)


def _refused(status: int, detail: str) -> ServingError:
    return ServingError(f"The service answered {status}: {detail}")


def _answer(body: Mapping[str, Any]) -> Answer:
    ids, scores = [hit["id"] for hit in body["hits"]], [hit["score"] for hit in body["hits"]]
    times = StepTimes(**body["times_ms"]) if "times_ms" in body else None
    ranking = Ranking(body["request_id"], tuple(ids), tuple(scores), times)
    metadata = tuple(hit.get("metadata", {}) for hit in body["hits"])
    return Answer(ranking, body["index_digest"], body["encoder_digest"], body["request_id"], metadata)


def _batch_fields(
    text: str | None = None, image: str | Path | bytes | None = None, gallery_id: str | None = None,
    k: int | None = None, exclude_reference: bool = True, weight: float | None = None, further: Further = PLAIN,
    fields: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    asked = _query_fields(text, gallery_id, k, exclude_reference, weight, further, fields)
    return asked if image is None else {**asked, "image": base64.b64encode(_bytes(image)).decode()}


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
        told["image"] = base64.b64encode(_bytes(item.image)).decode()
    return _without_none(told)


def _without_none(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in tree.items() if value is not None}


def _pause(reply: httpx.Response, attempt: int) -> float:
    asked = reply.headers.get("retry-after", "")
    return min(float(asked), 10.0) if asked.isdigit() else 0.2 * 2**attempt


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
