"""Galleries of a service by name: in its arguments and in its paths."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cirray.serving.config import ServeArgs

DEFAULT = "default"
"""Name of the gallery that answers where a path names none."""
BELOW = "/v1/galleries/"
"""Paths of a gallery by name begin with it and the name."""


def each(args: "ServeArgs") -> dict[str, "ServeArgs"]:
    """The arguments of every gallery of a service by its name."""
    from cirray.index.latest import made_with

    further = {
        name: args.model_copy(update={"index": place, "checkpoint": made_with(place, args.checkpoint)})
        for name, place in args.galleries.items()
    }
    return {DEFAULT: args, **further}


def parted(path: str) -> tuple[str | None, str]:
    """The gallery that a path is about (None: it is about none), and the path as it is without a name."""
    if path.startswith(BELOW):
        name, slash, rest = path.removeprefix(BELOW).partition("/")
        return name, f"/v1/{rest}" if slash else "/version"
    own = path == "/version" or (path.startswith("/v1/") and path != BELOW.rstrip("/"))
    return (DEFAULT if own else None), path
