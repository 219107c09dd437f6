"""What a configuration field is: part of a result's identity (the default), a place, or an effort."""

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator
from pydantic.fields import FieldInfo

ValueT = TypeVar("ValueT")


class Role(Enum):
    """What a field decides: what is made, where something is, or how the work is done."""

    IDENTITY = "identity"
    PLACE = "place"
    EFFORT = "effort"


@dataclass(frozen=True)
class Known:
    """Names that this package has for a field; plug-ins may add more. `Annotated[str, Known("torch")]`."""

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        """Keep the names in the order in which help shows them."""
        object.__setattr__(self, "names", names)


class Shown(Enum):
    """Where help shows a field of a section."""

    SHORT = "short"


@dataclass(frozen=True)
class Since:
    """The version that added a field; at its default it is not part of an identity. `Annotated[int, Since("0.2")]`."""

    version: str


@dataclass(frozen=True)
class Kind:
    """The kind of artifact that a place must name. `Annotated[Place, Kind("pairs")]`; others are refused."""

    name: str


def _some(values: Any) -> Any:
    if not values:
        raise ValueError("needs at least one entry")
    return values


Place = Annotated[str, Role.PLACE]
"""A path, URI or artifact name; in an identity the digest of its content replaces it."""
Features = Annotated[Place, Kind("features")]
"""A features artifact, which most stages read."""
Some = Annotated[ValueT, AfterValidator(_some)]
"""A list or mapping with at least one entry. `Some[tuple[Features, ...]]`."""
Effort = Annotated[ValueT, Role.EFFORT]
"""Workers, devices, memory, progress, timeouts: never changes the result. `Effort[int]`, `Effort[RayConfig]`."""

Common = Annotated[ValueT, Shown.SHORT]
"""One of the fields people change: `cirray VERB --help` shows it although it lies in a section. `Common[int]`."""


class StageDigested:
    """A section whose places have one digest together (a data set's folders), given by its stage."""

    def unread(self) -> frozenset[str]:
        """Fields that nothing reads because of what the others say (other formats'); no part of an identity."""
        return frozenset()


def role_of(field: FieldInfo) -> Role:
    """What a field of a `Config` is, as declared; a list, mapping or union of places is a place, scratch an effort."""
    roles = _said(Role, field.metadata, field.annotation)
    return Role.EFFORT if Role.EFFORT in roles else next(iter(roles), Role.IDENTITY)


def names_place(field: FieldInfo) -> bool:
    """Whether a field holds a path, URI or artifact name, whatever its role is (`Effort[Place]`: scratch)."""
    return Role.PLACE in _said(Role, field.metadata, field.annotation)


def kind_of(field: FieldInfo) -> str | None:
    """The kind of artifact that a field names; None where any place will do."""
    return next((kind.name for kind in _said(Kind, field.metadata, field.annotation)), None)


def _said(cls: type[ValueT], metadata: Any, annotation: Any) -> list[ValueT]:
    found = [item for item in metadata if isinstance(item, cls)]
    for part in get_args(annotation):
        found += _said(cls, getattr(part, "__metadata__", ()), part)
    return found
