"""The outermost layer, in Ray's HTTP proxy (or the replica's own server on the fast path): admits or refuses requests.

A request's Host, headers and whole body are checked before Ray sees it. Only then does it take one of a bounded number
of places, so that a slow client costs only memory; when all are taken, the answer is 429. Ray's plain-text answers (a
dead replica, a missing route) become problem documents.
"""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cirray.serving.access import AccessLog
from cirray.serving.config import ServeArgs, is_loopback
from cirray.serving.guard import SAFE_HEADERS, request_id_of
from cirray.serving.keys import KeyRing, admit
from cirray.serving.problems import (
    BAD_HOST,
    BUSY,
    MEDIA_TYPE,
    TOO_LARGE,
    TOO_SLOW,
    UNAVAILABLE,
    ProblemError,
    response_of,
)

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
AGAIN, _CLOSE = {"retry-after": "1"}, {"connection": "close"}
GRACE_S = 1.0
"""Seconds after which a body counts as slow."""
_ATTEMPTS = 2
_METHODS = ("GET", "POST", "PUT", "DELETE")
_HEADERS = ("authorization", "content-type", "x-request-id")
_UNCOUNTED = ("/healthz", "/readyz", "/version")
_RAYS_OWN = (b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"x-request-id")
"""Headers by which a client could change how Ray handles its request."""


@dataclass(frozen=True)
class GateRules:
    """Limits of one application."""

    hosts: tuple[str, ...] = ()
    """Accepted Host names, without port; `*.example.org` means any name below; none: every name."""
    max_in_flight: int = 96
    """Most requests being answered; others get 429."""
    max_body_bytes: int = 10 * 2**20
    """Longest body in bytes."""
    max_held_bytes: int = 64 * 2**20
    """Most bytes of bodies in memory; others get 503."""
    body_timeout_s: float = 20.0
    """Seconds a body may take."""
    header_timeout_s: float = 10.0
    """Seconds a connection may take for the headers of a request."""
    slow_per_client: int = 16
    """Most slow bodies of one client at a time."""
    keys: str = ""
    """File of keys; empty: nobody needs one."""
    origins: tuple[str, ...] = ()
    """Other sites whose pages may ask (CORS)."""
    access_log: str = ""
    """File of the access log; empty: none."""
    entrances: int = 1
    """Gates that requests are spread over; each lets its part of a key's rate pass."""


def rules_of(args: ServeArgs, listens_on: str) -> GateRules:
    """Limits from the service's arguments.

    Args:
        args: of the service.
        listens_on: interface of the entrance; on loopback without `allowed_hosts`, only loopback's names are answered.
    """
    hosts = args.allowed_hosts if args.allowed_hosts is not None else LOOPBACK if is_loopback(listens_on) else ()
    return GateRules(
        hosts=tuple(host.lower() for host in hosts), max_in_flight=args.max_in_flight,
        max_body_bytes=int(args.max_body_mb * 2**20), max_held_bytes=int(args.max_held_mb * 2**20),
        body_timeout_s=args.body_timeout_s, header_timeout_s=args.header_timeout_s,
        slow_per_client=args.slow_per_client, keys=args.keys, origins=args.origins, access_log=args.access_log,
    )  # fmt: skip


class Lane:
    """Rules and state of one application."""

    def __init__(self, rules: GateRules) -> None:
        """No request is inside yet."""
        self.in_flight, self.held = 0, 0
        self.slow: Counter[str] = Counter()
        self.take(rules)

    def take(self, rules: GateRules) -> None:
        """Follow these rules from now on; what was counted against rates of keys stays while their file does."""
        before, self.rules = getattr(self, "rules", None), rules
        if before is None or before.keys != rules.keys:
            self.ring = KeyRing(rules.keys) if rules.keys else None
        if before is None or before.access_log != rules.access_log:
            self.log = AccessLog(rules.access_log) if rules.access_log else None


_LANES: dict[str, Lane] = {}


def open_lane(prefix: str, rules: GateRules) -> None:
    """Set the rules of the application at a route prefix, for every gate of this process without a lane of its own."""
    if prefix in _LANES:
        _LANES[prefix].take(rules)
    else:
        _LANES[prefix] = Lane(rules)


def in_flight() -> int:
    """Requests that are being answered in this process."""
    return sum(lane.in_flight for lane in _LANES.values())


def middlewares() -> list[Middleware]:
    """Middlewares for Ray's servers, by `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=cirray.serving.gate:middlewares`."""
    return [Middleware(Gate)]


class Gate:
    """Wraps an ASGI application."""

    def __init__(self, app: ASGIApp, lane: Lane | None = None, ray: bool = True) -> None:
        """Take the application behind the gate.

        Args:
            app: what to protect.
            lane: for all requests; else they follow the lanes of this process (`open_lane`), and a path without one
                passes as it is.
            ray: Ray is between the gate and the application: its refusals become problem documents, and a request that
                it lost is repeated once.
        """
        self._app, self._lane = app, lane
        self._forward = _forward if ray else _hand_on

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})  # shared with the outer layers, which answer unexpected errors
        request_id, scope = _cleaned(scope)
        lane = self._lane or _lane_of(scope["path"])
        if lane is None or scope["path"].startswith("/-/"):
            await self._app(scope, receive, send)
            return
        answer = lane.log.watch(scope, request_id, send) if lane.log else None
        try:
            await self._answer(lane, scope, receive, answer or send)
        finally:
            if answer:
                answer.write()

    async def _answer(self, lane: Lane, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, also a browser's that asks for a page of another site."""

        async def inside(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await self._admit(lane, scope, receive, send)
            except ProblemError as error:
                request_id = _header(scope, b"x-request-id")
                await response_of(error, request_id)(scope, receive, _named(send, request_id))

        outer: ASGIApp = inside
        if lane.rules.origins:
            outer = CORSMiddleware(
                inside, lane.rules.origins, _METHODS, _HEADERS, expose_headers=("x-request-id", "retry-after")
            )
        await outer(scope, receive, send)

    async def _admit(self, lane: Lane, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, read its body, give it a place.

        Raises:
            ProblemError: when it is refused, or nothing behind the gate could answer.
        """
        check_host(_header(scope, b"host"), lane.rules.hosts)
        if lane.ring:
            scope["state"]["key"] = await admit(lane.ring, scope, lane.rules.entrances)
        counted = not scope["path"].endswith(_UNCOUNTED)
        if counted:
            _check_places(lane)
        body = _Body(lane, scope)
        try:
            if not await body.read(receive):
                return
            if counted:
                _check_places(lane)
            lane.in_flight += counted
            try:
                await self._forward(self._app, scope, bytes(body.data), receive, send)
            finally:
                lane.in_flight -= counted
        finally:
            body.release()


def _check_places(lane: Lane) -> None:
    if lane.in_flight >= lane.rules.max_in_flight:
        raise ProblemError(BUSY, f"{lane.in_flight} requests are being answered already. Try again.", AGAIN)


class _Body:
    """The body of one request."""

    def __init__(self, lane: Lane, scope: Scope) -> None:
        self._lane, self._client = lane, (scope.get("client") or ("unknown",))[0]
        self.data = bytearray()
        self._slow = False
        announced = _header(scope, b"content-length")
        if announced.isdigit() and int(announced) > lane.rules.max_body_bytes:
            raise _too_large(lane.rules)

    async def read(self, receive: Receive) -> bool:
        """Read the whole body; False when the client went away."""
        begin = time.monotonic()
        while True:
            message = await self._next(asyncio.ensure_future(receive()), begin)
            if message["type"] == "http.disconnect":
                return False
            self._keep(message.get("body", b""))
            if not message.get("more_body", False):
                return True

    async def _next(self, coming: asyncio.Future[Message], begin: float) -> Message:
        """The next piece, or a problem when it takes too long."""
        timeout_s = self._lane.rules.body_timeout_s
        try:
            await asyncio.sleep(0)  # what has arrived already needs no clock
            while not coming.done():
                limit = timeout_s if self._slow else min(GRACE_S, timeout_s)
                await asyncio.wait({coming}, timeout=max(0.0, begin + limit - time.monotonic()))
                if not coming.done():
                    self._grow_slow(time.monotonic() - begin)
            return coming.result()
        finally:
            coming.cancel()

    def _grow_slow(self, seconds: float) -> None:
        """Limit slow bodies in number per client and in time."""
        rules = self._lane.rules
        if self._slow or seconds >= rules.body_timeout_s:
            raise ProblemError(TOO_SLOW, f"The body did not arrive within {rules.body_timeout_s:g} s.", _CLOSE)
        if self._lane.slow[self._client] >= rules.slow_per_client:
            raise ProblemError(TOO_SLOW, f"You are sending {rules.slow_per_client} other bodies slowly.", _CLOSE)
        self._lane.slow[self._client] += 1
        self._slow = True

    def _keep(self, piece: bytes) -> None:
        self.data += piece
        self._lane.held += len(piece)
        if len(self.data) > self._lane.rules.max_body_bytes:
            raise _too_large(self._lane.rules)
        if self._lane.held > self._lane.rules.max_held_bytes:
            raise ProblemError(UNAVAILABLE, "Too many long bodies arrive. Try again.", AGAIN)

    def release(self) -> None:
        """Release its memory and place."""
        self._lane.held -= len(self.data)
        if self._slow:
            self._lane.slow -= Counter({self._client: 1})


async def _hand_on(app: ASGIApp, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
    await app(scope, _Replay(body, receive), send)


async def _forward(app: ASGIApp, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
    """Pass a whole request on, a second time when a replica died under it; every request may be repeated.

    Raises:
        ProblemError: when Ray, not the application, refused.
    """
    for attempt in range(_ATTEMPTS):
        source, answer = _Replay(body, receive), _Answer(send)
        try:
            await app({**scope, "headers": list(scope["headers"])}, source, answer)
        except Exception:
            if answer.passed:
                raise
        if answer.passed or source.gone:
            return
        if answer.status == BUSY.status:
            raise ProblemError(BUSY, "All replicas are busy. Try again.", AGAIN)
        if answer.status != 500 or attempt + 1 == _ATTEMPTS:
            raise ProblemError(UNAVAILABLE, "No replica could answer. Try again.", AGAIN)


class _Replay:
    """A body that was read already, then the client's next message."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive
        self.gone = False

    async def __call__(self) -> Message:
        if self._body is not None:
            message: Message = {"type": "http.request", "body": self._body, "more_body": False}
            self._body = None
            return message
        message = await self._receive()
        self.gone = self.gone or message["type"] == "http.disconnect"
        return message


class _Answer:
    """Passes the application's answers on; of Ray's own plain-text refusals only the status is kept."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.passed, self.status = False, 500

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.passed = self.status < 400 or _content_type(message).startswith(MEDIA_TYPE)
        if self.passed:
            await self._send(message)


def check_host(given: str, hosts: tuple[str, ...]) -> None:
    """Refuse a request for another host name (DNS rebinding).

    Raises:
        ProblemError: 421, naming the hosts that are answered.
    """
    name = given.rpartition(":")[0] if ":" in given and not given.endswith("]") else given
    name = name.lower().rstrip(".")
    if not hosts or any(name == host or (host.startswith("*.") and name.endswith(host[1:])) for host in hosts):
        return
    served = ", ".join(hosts)
    raise ProblemError(
        BAD_HOST, f"The Host {given[:80]!r} is not served here; {served} are. The service's `allowed_hosts` adds names."
    )


def _cleaned(scope: Scope) -> tuple[str, Scope]:
    """The request's id, and its scope with harmless headers."""
    given, kept = "", []
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            given = value.decode("latin-1")
        if name not in _RAYS_OWN and _is_text(name) and _is_text(value):
            kept.append((name, value))
    request_id = request_id_of(given)
    return request_id, {**scope, "headers": [*kept, (b"x-request-id", request_id.encode())]}


def _is_text(value: bytes) -> bool:
    if value.isascii():
        return True
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _lane_of(path: str) -> Lane | None:
    fits = [prefix for prefix in _LANES if prefix == "/" or path == prefix or path.startswith(f"{prefix}/")]
    return _LANES[max(fits, key=len)] if fits else None


def _header(scope: Scope, wanted: bytes) -> str:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == wanted), "")


def _content_type(message: Message) -> str:
    return next((v.decode("latin-1") for n, v in message.get("headers", []) if n.lower() == b"content-type"), "")


def _too_large(rules: GateRules) -> ProblemError:
    return ProblemError(
        TOO_LARGE, f"The body is longer than {rules.max_body_bytes / 2**20:.3g} MiB. Send a smaller image."
    )


def _named(send: Send, request_id: str) -> Any:
    """Answers of the gate itself, with the application's usual headers."""

    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in {**SAFE_HEADERS, "cache-control": "no-store", "x-request-id": request_id}.items():
                headers.setdefault(name, value)
        await send(message)

    return with_headers
