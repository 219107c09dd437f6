"""A small Python client of the service, and its twin for asyncio."""

import asyncio
import inspect
import itertools
import time
from collections.abc import Awaitable, Callable
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

import httpx

from cirray.core.environ import service_key
from cirray.core.errors import ServingError
from cirray.serving import calls
from cirray.serving.calls import Call
from cirray.serving.names import below

_TRY_AGAIN = (429, 502, 503)
_PROBLEM = "application/problem+json"
_Asked = ParamSpec("_Asked")
_ReadT = TypeVar("_ReadT")


def _now(
    make: Callable[_Asked, Call[_ReadT]],
) -> Callable[Concatenate["SearchClient", _Asked], _ReadT]:
    """A method that asks, and returns what the answer says."""

    def method(self: "SearchClient", *args: _Asked.args, **kwargs: _Asked.kwargs) -> _ReadT:
        return self.ask(make(*args, **kwargs))

    return _like(method, make)


def _later(
    make: Callable[_Asked, Call[_ReadT]],
) -> Callable[Concatenate["AsyncSearchClient", _Asked], Awaitable[_ReadT]]:
    """The same to be awaited."""

    async def method(self: "AsyncSearchClient", *args: _Asked.args, **kwargs: _Asked.kwargs) -> _ReadT:
        return await self.ask(make(*args, **kwargs))

    return _like(method, make)


def _like(method: Any, make: Callable[..., Call[Any]]) -> Any:
    """A method with the name, the docstring and the arguments of the function that makes its question."""
    told = inspect.signature(make)
    returns = next(iter(getattr(told.return_annotation, "__args__", ())), Any)
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    made: Any = wraps(make)(method)
    made.__signature__ = told.replace(parameters=[first, *told.parameters.values()], return_annotation=returns)
    return made


class _Client:
    """What both clients are told, and when they ask again."""

    _pool: Callable[..., Any]
    """Class of httpx that sends."""

    def __init__(
        self, url: str = "http://127.0.0.1:8000", timeout_s: float = 30.0, retries: int = 3,
        transport: Any = None, key: str | None = None,
        gallery: str = "",
    ) -> None:  # fmt: skip
        """Open a connection pool.

        Args:
            url: where the service listens, with its route prefix if it has one.
            timeout_s: for each request.
            retries: how often to retry: on 429, 502, 503, a refused or cut connection, and Ray's own 500 (a replica
                died).
            transport: another httpx transport, e.g. an application in this process.
            key: the key of a service that needs one; None: the variable CIRRAY_KEY.
            gallery: which of the service's galleries is asked, by its name; empty: the one that it asks where none is
                named.
        """
        self._url, self._retries, self._gallery = url.rstrip("/"), retries, gallery
        shown = service_key() if key is None else key
        headers = {"authorization": f"Bearer {shown}"} if shown else {}
        self._http = self._pool(timeout=timeout_s, transport=transport, headers=headers)

    def _pause(self, found: httpx.Response | httpx.TransportError, attempt: int) -> float | None:
        """Seconds until the next try; None: this was the last one that makes sense."""
        if attempt == self._retries or (isinstance(found, httpx.Response) and not _may_pass(found)):
            return None
        asked = found.headers.get("retry-after", "") if isinstance(found, httpx.Response) else ""
        return min(float(asked), 10.0) if asked.isdigit() else 0.2 * 2**attempt

    def _read(self, call: Call[_ReadT], found: httpx.Response | httpx.TransportError) -> _ReadT:
        """What the last answer says.

        Raises:
            ServingError: with the server's sentence, or when it cannot be reached.
        """
        if isinstance(found, httpx.TransportError):
            raise ServingError(f"The service at {self._url!r} cannot be reached: {found}.") from None
        if found.status_code < 400:
            return call.read(found)
        try:
            detail = found.json()["detail"]
        except (ValueError, KeyError, TypeError):
            detail = found.text[:200]
        raise calls.refused(found.status_code, detail)


def _may_pass(reply: httpx.Response) -> bool:
    """Whether another try may succeed; every request of this interface may be repeated."""
    written_by_proxy = not reply.headers.get("content-type", "").startswith(_PROBLEM)
    return reply.status_code in _TRY_AGAIN or (reply.status_code in (500, 504) and written_by_proxy)


class SearchClient(_Client):
    """Talks to one service; a context manager. Its methods are the functions of `cirray.serving.calls`.

    Example:
        with SearchClient("http://127.0.0.1:8000") as client:
            answer = client.search("in the middle left add a large cyan diamond", gallery_id="gal-00020-0")
    """

    _http: httpx.Client
    _pool = httpx.Client

    search = _now(calls.search)
    search_many = _now(calls.search_many)
    facets = _now(calls.facets)
    examples = _now(calls.examples)
    gallery = _now(calls.gallery)
    image = _now(calls.image)
    put = _now(calls.put)
    delete = _now(calls.delete)
    add = _now(calls.add)
    load = _now(calls.load)
    version = _now(calls.version)
    galleries = _now(calls.galleries)
    ready = _now(calls.ready)
    metrics = _now(calls.metrics)

    def ask(self, call: Call[_ReadT]) -> _ReadT:
        """Send a question, once more where that may help, and read the answer."""
        for attempt in itertools.count():
            found = self._tried(call)
            pause = self._pause(found, attempt)
            if pause is None:
                return self._read(call, found)
            time.sleep(pause)
        raise AssertionError("unreachable: the loop returns or raises")

    def _tried(self, call: Call[Any]) -> httpx.Response | httpx.TransportError:
        try:
            return self._http.request(call.method, self._url + below(call.path, self._gallery), **call.content)
        except httpx.TransportError as error:
            return error

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


class AsyncSearchClient(_Client):
    """The same for asyncio: every method is awaited.

    Example:
        async with AsyncSearchClient("http://127.0.0.1:8000") as client:
            answers = await asyncio.gather(*(client.search(text, gallery_id="gal-00020-0") for text in texts))
    """

    _http: httpx.AsyncClient
    _pool = httpx.AsyncClient

    search = _later(calls.search)
    search_many = _later(calls.search_many)
    facets = _later(calls.facets)
    examples = _later(calls.examples)
    gallery = _later(calls.gallery)
    image = _later(calls.image)
    put = _later(calls.put)
    delete = _later(calls.delete)
    add = _later(calls.add)
    load = _later(calls.load)
    version = _later(calls.version)
    galleries = _later(calls.galleries)
    ready = _later(calls.ready)
    metrics = _later(calls.metrics)

    async def ask(self, call: Call[_ReadT]) -> _ReadT:
        """Send a question, once more where that may help, and read the answer."""
        for attempt in itertools.count():
            found = await self._tried(call)
            pause = self._pause(found, attempt)
            if pause is None:
                return self._read(call, found)
            await asyncio.sleep(pause)
        raise AssertionError("unreachable: the loop returns or raises")

    async def _tried(self, call: Call[Any]) -> httpx.Response | httpx.TransportError:
        try:
            return await self._http.request(call.method, self._url + below(call.path, self._gallery), **call.content)
        except httpx.TransportError as error:
            return error

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> "AsyncSearchClient":
        """The client itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self.close()
