"""Galleries of a service by name: in its arguments and in its paths."""

from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from cirray.serving.config import ServeArgs

DEFAULT = "default"
"""Name of the gallery that answers where a path names none."""
LIST = "/v1/galleries"
BELOW = f"{LIST}/"
"""Paths of a gallery by name begin with it and the name."""


def each(args: "ServeArgs") -> dict[str, "ServeArgs"]:
    """The arguments of every gallery of a service by its name."""
    from cirray.index.latest import made_with

    further = {
        name: args.model_copy(update={"index": place, "checkpoint": made_with(place, args.checkpoint)})
        for name, place in args.galleries.items()
    }
    return {DEFAULT: args, **further}


def below(path: str, gallery: str) -> str:
    """The path of a gallery by name that answers as a path without a name does; empty: that path."""
    if not gallery or not _is_own(path):
        return path
    return f"{BELOW}{quote(gallery, safe='')}{path.removeprefix('/version').removeprefix('/v1')}"


def api_of(url: str) -> str:
    """Where the routes of another service stand, or those of one of its galleries."""
    url = url.rstrip("/")
    return f"{url}/" if BELOW in url else f"{url}/v1/"


def parted(path: str) -> tuple[str | None, str]:
    """The gallery that a path is about (None: it is about none), and the path as it is without a name."""
    if path.startswith(BELOW):
        name, slash, rest = path.removeprefix(BELOW).partition("/")
        return name, f"/v1/{rest}" if slash else "/version"
    return (DEFAULT if _is_own(path) else None), path


def _is_own(path: str) -> bool:
    """Whether a path without a name is about a gallery."""
    return path == "/version" or (path.startswith("/v1/") and path != LIST)
