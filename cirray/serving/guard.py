"""The application's own outer layer: body cap, body deadline, request ids, safe headers. Plain ASGI.

Behind Ray, `gate.py` has checked a request before; this works without it too.
"""

import asyncio
import re
import time
import uuid
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cirray.serving.problems import TOO_LARGE, TOO_SLOW, ProblemError, response_of

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
POLICY = "content-security-policy"
"""Header of what a page may load."""


def page_policy(others: Sequence[str] = ()) -> str:
    """What a page may load: from here alone, and pictures and answers also below these addresses."""
    more = "".join(f" {url}" for url in others)
    return (
        f"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:{more}; connect-src 'self'"
        f"{more}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


SAFE_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    POLICY: page_policy(),
}


class Guard:
    """Wraps an ASGI application."""

    def __init__(self, app: ASGIApp, max_body_bytes: int, body_timeout_s: float, echo_request_id: bool) -> None:
        """Set the limits.

        Args:
            app: what to protect.
            max_body_bytes: longest body; longer ones are answered 413 while they arrive.
            body_timeout_s: seconds until the whole body must have arrived.
            echo_request_id: write X-Request-ID into answers; off behind Ray Serve, whose proxy writes it.
        """
        self._app, self._max_bytes, self._timeout_s = app, max_body_bytes, body_timeout_s
        self._echo = echo_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(Headers(scope=scope).get("x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_safely(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._add_headers(MutableHeaders(scope=message), request_id)
            await send(message)

        try:
            self._check_announced(scope)
            await self._app(scope, self._counted(receive), send_safely)
        except ProblemError as error:
            if started:
                raise
            await response_of(error, request_id)(scope, receive, send_safely)

    def _check_announced(self, scope: Scope) -> None:
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdigit() and int(announced) > self._max_bytes:
            raise self._too_large()

    def _counted(self, receive: Receive) -> Receive:
        seen, deadline, complete = 0, time.monotonic() + self._timeout_s, False

        async def counted() -> Message:
            nonlocal seen, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                raise ProblemError(TOO_SLOW, f"The body did not arrive within {self._timeout_s:g} s.") from None
            seen += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if seen > self._max_bytes:
                raise self._too_large()
            return message

        return counted

    def _too_large(self) -> ProblemError:
        megabytes = self._max_bytes / 2**20
        return ProblemError(TOO_LARGE, f"The body is longer than {megabytes:.3g} MiB. Send a smaller image.")

    def _add_headers(self, headers: MutableHeaders, request_id: str) -> None:
        for name, value in SAFE_HEADERS.items():
            headers.setdefault(name, value)
        headers.setdefault("cache-control", "no-store")
        if self._echo:
            headers["x-request-id"] = request_id


def request_id_of(given: str | None) -> str:
    """The caller's id if it is harmless, else a new one."""
    return given if given and _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
