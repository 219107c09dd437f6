"""What a configuration field is: part of the identity of a result (one that says nothing else), a place, an effort."""

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, TypeVar, get_args

from pydantic.fields import FieldInfo

ValueT = TypeVar("ValueT")


class Role(Enum):
    """What a field says: what is made, where something lies, or how the work is done."""

    IDENTITY = "identity"
    PLACE = "place"
    EFFORT = "effort"


@dataclass(frozen=True)
class Since:
    """The version that brought a field: at its default it is no part of an identity. `Annotated[int, Since("0.2")]`."""

    version: str


Place = Annotated[str, Role.PLACE]
"""A path, URI or artifact name; the digest of what lies there stands for it."""
Effort = Annotated[ValueT, Role.EFFORT]
"""Workers, devices, memory, progress, timeouts: never changes the result. `Effort[int]`, `Effort[RayConfig]`."""


def role_of(field: FieldInfo) -> Role:
    """What a field of a `Config` is, as declared; a list, mapping or union of places is a place."""
    return next((role for role in _roles(field.metadata, field.annotation)), Role.IDENTITY)


def names_place(field: FieldInfo) -> bool:
    """Whether a field holds a path, URI or artifact name, whatever its role is (`Effort[Place]`: scratch)."""
    return Role.PLACE in _roles(field.metadata, field.annotation)


def _roles(metadata: Any, annotation: Any) -> list[Role]:
    found = [item for item in metadata if isinstance(item, Role)]
    for part in get_args(annotation):
        found += _roles(getattr(part, "__metadata__", ()), part)
    return found
