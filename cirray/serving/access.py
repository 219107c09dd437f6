"""The access log: one line of JSON a request, from the gate, which sees also what it refuses."""

import json
import os
import re
import time
from datetime import UTC, datetime

from starlette.types import Message, Scope, Send

from cirray.core.log import get_logger

_LOG = get_logger(__name__)
_ID = re.compile(r"(/v1/(?:galleries/[^/]+/)?images/).*", re.DOTALL)
"""A route that ends in an id, which would make a route of every picture."""


class AccessLog:
    """Appends lines to a file, which may be moved away at any time (logrotate): the next line makes it anew."""

    def __init__(self, place: str) -> None:
        """The file is opened at its first line."""
        self._place, self._failed = os.path.expanduser(place), False

    def watch(self, scope: Scope, request_id: str, send: Send) -> "WatchedAnswer":
        """An answer that notes what passes through it."""
        return WatchedAnswer(self, scope, request_id, send)

    def write(self, line: str) -> None:
        """Append one line, in one system call, so that processes can share the file. A full disk costs a warning."""
        try:
            descriptor = os.open(self._place, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)
            self._failed = False
        except OSError as error:
            if not self._failed:
                _LOG.warning("the access log cannot be written: %s", error)
            self._failed = True


class WatchedAnswer:
    """Passes messages of an answer on; notes its status and size."""

    def __init__(self, log: AccessLog, scope: Scope, request_id: str, send: Send) -> None:
        """The request begins now."""
        self._log, self._scope, self._request_id, self._send = log, scope, request_id, send
        self._begin, self._status, self._bytes = time.perf_counter(), 0, 0

    async def __call__(self, message: Message) -> None:
        """Pass one message on."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
        self._bytes += len(message.get("body", b""))
        await self._send(message)

    def write(self) -> None:
        """Write the line; status 0 is a client that went away, or a connection that was cut."""
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"), "request_id": self._request_id,
            "key": self._scope["state"].get("key", ""), "method": self._scope["method"],
            "route": route_of(self._scope["path"]), "status": self._status,
            "ms": round(1000 * (time.perf_counter() - self._begin), 2), "bytes": self._bytes,
        }  # fmt: skip
        self._log.write(json.dumps(line) + "\n")


def route_of(path: str) -> str:
    """A path without the id in it: `/v1/images/{image_id}`."""
    return _ID.sub(r"\1{image_id}", path)[:200]
