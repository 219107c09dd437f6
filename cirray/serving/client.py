"""A small Python client of the service."""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from cirray.core.environ import service_key
from cirray.core.errors import ServingError
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
        k: int | None = None, exclude_reference: bool = True, weight: float | None = None,
    ) -> Answer:  # fmt: skip
        """Search by an image (path or bytes) or a gallery id, and a text that says what to change; or by one alone.

        `weight` is the text's share, 0 to 1; None: the model's own.

        Raises:
            ServingError: with the server's own sentence, or when it cannot be reached.
        """
        told = {"text": text, "gallery_id": gallery_id, "k": k, "weight": weight}
        fields: dict[str, Any] = {"exclude_reference": exclude_reference}
        fields |= {name: value for name, value in told.items() if value is not None}
        if image is None:
            reply = self._ask("POST", "/v1/search", json=fields)
        else:
            picture = image if isinstance(image, bytes) else _read(Path(image))
            form = {name: str(value) for name, value in fields.items()}
            reply = self._ask("POST", "/v1/search", data=form, files={"image": ("image", picture)})
        body = reply.json()
        ids, scores = [hit["id"] for hit in body["hits"]], [hit["score"] for hit in body["hits"]]
        times = StepTimes(**body["times_ms"]) if "times_ms" in body else None
        ranking = Ranking(body["request_id"], tuple(ids), tuple(scores), times)
        return Answer(ranking, body["index_digest"], body["encoder_digest"], body["request_id"])

    def image(self, image_id: str) -> bytes:
        """Encoded picture of a gallery image."""
        return self._ask("GET", f"/v1/images/{quote(image_id, safe='')}").content

    def put(self, image_id: str, image: str | Path | bytes, metadata: Mapping[str, Any] | None = None) -> int:
        """Add or replace an image (path or bytes) of a gallery that is written to; returns the version that shows it.

        Raises:
            ServingError: with the server's own sentence.
        """
        picture = image if isinstance(image, bytes) else _read(Path(image))
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
    raise ServingError(f"The service answered {reply.status_code}: {detail}")


def _pause(reply: httpx.Response, attempt: int) -> float:
    asked = reply.headers.get("retry-after", "")
    return min(float(asked), 10.0) if asked.isdigit() else 0.2 * 2**attempt


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ServingError(f"Image {str(path)!r} cannot be read: {error.strerror}.") from None
