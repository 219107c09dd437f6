"""Configuration of the service's keys."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from cirray.core.config import Config
from cirray.core.fields import Place, Some


def _rate(text: str) -> str:
    """A rate as written, if it is one."""
    import limits  # here, so that the command line starts without it

    try:
        return text and str(limits.parse(text)) and text
    except ValueError:
        raise ValueError(f"{text!r} is no rate; write 20/second, 600/minute or 10000/day") from None


def _moment(given: datetime | None) -> datetime | None:
    """A time in UTC, which one without a zone is taken for."""
    return given and (given.replace(tzinfo=UTC) if given.tzinfo is None else given.astimezone(UTC))


def _name(text: str) -> str:
    """A key's name, which stands in lists and logs as it is."""
    if text and not re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text):
        raise ValueError(f"{text[:80]!r} is no name of a key; letters, digits, '.', '_' and '-' are, 64 at most")
    return text


def _parted(given: Any) -> Any:
    """`read,write` as two."""
    return [part for item in given for part in str(item).split(",")] if isinstance(given, list | tuple) else given


Name = Annotated[str, AfterValidator(_name)]
Scopes = Annotated[Some[tuple[Literal["read", "write"], ...]], BeforeValidator(_parted)]
Rate = Annotated[str, AfterValidator(_rate)]
Moment = Annotated[datetime | None, AfterValidator(_moment)]


class ServiceKey(Config):
    """A key as its file holds it."""

    name: Name = Field(min_length=1)
    """What it is called in lists and logs."""
    id: str = Field(pattern="^[0-9a-f]{8}$")
    """The key's second part, by which it is found."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Digest of the whole key."""
    scopes: Scopes
    """What it may do."""
    galleries: tuple[str, ...] = ()
    """The galleries it is for, by name; empty: all."""
    rate: Rate = ""
    """Most requests in a time; empty: any number."""
    expires: Moment = None
    """Its end; null: none."""


class KeysRun(Config):
    """Add, revoke or list the keys of a service."""

    file: Place
    """File of keys; `cirray serve --keys FILE` reads it."""
    add: Name = ""
    """Name of a new key, which is printed once."""
    revoke: str = ""
    """Name of a key that ends now."""
    scopes: Scopes = ("read",)
    """What a new key may do: `read`, `write` or both."""
    galleries: tuple[str, ...] = ()
    """Galleries of the service that a new key is for, by name; empty: all."""
    rate: Rate = ""
    """Requests a new key may make at each entrance, such as 20/second or 600/minute; empty: any number."""
    expires: Moment = None
    """When a new key ends: 2027-01-31, or 2027-01-31T18:00 (UTC); null: never."""
