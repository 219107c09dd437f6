"""Who may ask: keys of the service, in a file that holds their digests.

A key is 256 random bits, so its SHA-256 digest can be kept as it is: salts and slow hashes are against lists of likely
passwords, and no key is likelier than another. The file is read again within a second of its change. If it cannot be
read, nobody is let in.
"""

import hashlib
import hmac
import math
import os
import secrets
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import limits
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from pydantic import TypeAdapter, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from cirray.core.errors import ConfigError, unknown_name
from cirray.core.log import get_logger
from cirray.serving.keys_config import KeysRun, ServiceKey
from cirray.serving.names import parted
from cirray.serving.problems import FORBIDDEN, NO_KEY, RATE, UNAVAILABLE, ProblemError

LOOK_S = 0.5
"""Seconds after which a change of the file is looked for."""
OPEN = ("/", "/healthz", "/readyz", "/docs", "/openapi.json")
"""Paths that need no key: health, and the package's own pages, which hold nothing of the gallery."""
OPEN_BELOW = "/static/"
READ_POSTS = ("/v1/search", "/v1/search:batch", "/v1/facets")
"""Paths whose POST changes nothing; every other request that is no GET needs the scope `write`."""
_LOG = get_logger(__name__)
_MARK = "cirray"
_KEYS = TypeAdapter(tuple[ServiceKey, ...])
_BEARER = {"www-authenticate": 'Bearer realm="cirray"'}


def run_keys(run: KeysRun) -> str:
    """Add, revoke or list keys; returns what is shown.

    Raises:
        ConfigError: the file cannot be read or written, a name is taken, or there is none of that name.
    """
    if run.add and run.revoke:
        raise ConfigError("Add a key or revoke one; add and revoke were both given.")
    path = Path(run.file).expanduser()
    keys = read_keys(path) if path.exists() or not run.add else ()
    if run.add:
        key, text = _made(run, keys)
        _write(path, (*keys, key))
        return f"{text}\nThis is the key {key.name!r}. It is shown once: {path} holds its digest only."
    if run.revoke:
        if run.revoke not in [key.name for key in keys]:
            raise ConfigError(unknown_name("key", run.revoke, [key.name for key in keys]))
        _write(path, tuple(key for key in keys if key.name != run.revoke))
        return f"The key {run.revoke!r} is revoked; a running service refuses it within a second."
    return "\n".join(["name  scopes  galleries  rate  expires", *map(_line, keys)])


def read_keys(path: Path) -> tuple[ServiceKey, ...]:
    """The keys of a file.

    Raises:
        ConfigError: it cannot be read, or is no file of keys.
    """
    try:
        return _KEYS.validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"The file of keys {str(path)!r} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"{str(path)!r} is no file of keys ({place}: {first['msg']}); `cirray keys` writes one."
        ) from None


def _made(run: KeysRun, keys: tuple[ServiceKey, ...]) -> tuple[ServiceKey, str]:
    """A new key and its text."""
    if run.add in [key.name for key in keys]:
        raise ConfigError(f"There is a key {run.add!r} already; revoke it first, or choose another name.")
    number = secrets.token_hex(4)
    text = f"{_MARK}_{number}_{secrets.token_urlsafe(32)}"
    key = ServiceKey(
        name=run.add,
        id=number,
        sha256=_digest(text),
        scopes=run.scopes,
        galleries=run.galleries,
        rate=run.rate,
        expires=run.expires,
    )
    return key, text


def _write(path: Path, keys: tuple[ServiceKey, ...]) -> None:
    """Replace the file in one step, readable for its owner only."""
    new = path.with_name(f"{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(_KEYS.dump_json(keys, indent=1) + b"\n")
        new.replace(path)
    except OSError as error:
        raise ConfigError(f"The file of keys {str(path)!r} cannot be written: {error.strerror}.") from None


def _line(key: ServiceKey) -> str:
    until = "never" if key.expires is None else f"{key.expires:%Y-%m-%d %H:%M} UTC"
    return f"{key.name}  {','.join(key.scopes)}  {','.join(key.galleries) or 'all'}  {key.rate or 'any'}  {until}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


class KeyRing:
    """The keys of a file, and what has been asked with each in this process."""

    def __init__(self, place: str) -> None:
        """The file is read at the first request."""
        self._path = Path(place).expanduser()
        self._keys: Mapping[str, ServiceKey] = {}
        self._seen: tuple[int, ...] = ()
        self._fault = ""
        self._looked_at = float("-inf")
        self._rates = MovingWindowRateLimiter(MemoryStorage())

    def key_of(self, scope: Scope) -> ServiceKey | None:
        """The key that a request shows; None where it shows none.

        A key has an id, by which it is found, and its digest is compared in constant time.

        Raises:
            ProblemError: 401 for an unknown or expired key, 503 when the file cannot be read.
        """
        given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"), "")
        kind, _, text = given.partition(" ")
        if not given:
            return None
        self._look()
        text = text.strip()
        number = text.split("_", 2)[1] if text.count("_") >= 2 else ""
        key = self._keys.get(number)
        same = hmac.compare_digest(_digest(text), key.sha256 if key else "0" * 64)
        if key is None or not same or kind.lower() != "bearer":
            raise _refused(
                "The key is not known here. Send `Authorization: Bearer KEY` with one that `cirray keys` made."
            )
        if key.expires is not None and key.expires <= datetime.now(UTC):
            raise _refused(f"The key {key.name!r} has expired.")
        return key

    async def spend(self, key: ServiceKey, entrances: int = 1) -> None:
        """Count a request against its key's rate: in no second (minute, ...) are there more, wherever it begins.

        Args:
            key: of the request.
            entrances: that share the rate, each counting its part of it, rounded up.

        Raises:
            ProblemError: 429 when it is used up, with the seconds until it is not.
        """
        if not key.rate:
            return
        rate = limits.parse(key.rate)
        part = type(rate)(math.ceil(rate.amount / entrances), rate.multiples)
        if await self._rates.hit(part, key.id):
            return
        stats = await self._rates.get_window_stats(part, key.id)
        wait = max(1, math.ceil(stats.reset_time - time.time()))
        raise ProblemError(RATE, f"The key {key.name!r} may ask {rate}.", {"retry-after": str(wait)})

    def _look(self) -> None:
        """Read the file again when it has changed."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_S:
            return
        try:
            found = os.stat(self._path)
            seen = (found.st_mtime_ns, found.st_size, found.st_ino)
            if seen != self._seen:
                self._keys = {key.id: key for key in read_keys(self._path)}
        except (OSError, ConfigError) as error:
            if self._fault != str(error):
                _LOG.error("nobody is let in: %s", error)
            self._keys, self._seen, self._fault = {}, (), str(error)
            raise ProblemError(
                UNAVAILABLE, "The service's file of keys cannot be read; its log says why.", {"retry-after": "1"}
            ) from None
        self._seen, self._fault, self._looked_at = seen, "", now


async def admit(ring: KeyRing, scope: Scope, entrances: int = 1) -> str:
    """Check a request's key and rate at the gate; returns the key's name, "" for what may need none.

    The application itself (`KeyCheck`) knows its routes and has the last word.

    Args:
        ring: the keys.
        scope: of the request.
        entrances: that share the keys' rates.

    Raises:
        ProblemError: 401, 429 or 503.
    """
    key = ring.key_of(scope)
    if key is not None:
        await ring.spend(key, entrances)
        return key.name
    if scope["method"] == "OPTIONS" or scope["path"].endswith(OPEN) or OPEN_BELOW in scope["path"]:
        return ""
    raise _missing()


class KeyCheck:
    """The application's own check of keys and scopes, whatever stands before it. Wraps an ASGI application."""

    def __init__(self, app: ASGIApp, ring: KeyRing) -> None:
        """Take the application and the keys."""
        self._app, self._ring = app, ring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event of ASGI.

        Raises:
            ProblemError: 401 without a known key, 403 for a key without the scope.
        """
        if scope["type"] == "http":
            self._check(scope)
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        whole = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/")) or "/"
        gallery, path = parted(whole)
        if scope["method"] == "OPTIONS" or (scope["method"] in ("GET", "HEAD") and _is_open(path)):
            return
        key = self._ring.key_of(scope)
        if key is None:
            raise _missing()
        if gallery is not None and key.galleries and gallery not in key.galleries:
            raise ProblemError(FORBIDDEN, f"The key {key.name!r} is not for the gallery {gallery[:80]!r}.")
        scope.setdefault("state", {})["galleries"] = key.galleries
        wanted = needed(scope["method"], path)
        if wanted not in key.scopes:
            raise ProblemError(
                FORBIDDEN, f"The key {key.name!r} has no scope {wanted!r}.",
                {"www-authenticate": f'Bearer realm="cirray", error="insufficient_scope", scope="{wanted}"'},
            )  # fmt: skip


def needed(method: str, path: str) -> str:
    """The scope that a request needs."""
    reads = method in ("GET", "HEAD") or (method == "POST" and path in READ_POSTS)
    return "read" if reads else "write"


def _is_open(path: str) -> bool:
    return path in OPEN or path.startswith(OPEN_BELOW)


def _missing() -> ProblemError:
    return ProblemError(NO_KEY, "This service needs a key. Send `Authorization: Bearer KEY`.", _BEARER)


def _refused(detail: str) -> ProblemError:
    return ProblemError(NO_KEY, detail, {"www-authenticate": f'{_BEARER["www-authenticate"]}, error="invalid_token"'})
