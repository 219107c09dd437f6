"""What a configuration field is: part of a result's identity (the default), a place, or an effort."""

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, TypeVar, get_args

from pydantic.fields import FieldInfo

ValueT = TypeVar("ValueT")


class Role(Enum):
    """What a field decides: what is made, where something is, or how the work is done."""

    IDENTITY = "identity"
    PLACE = "place"
    EFFORT = "effort"


@dataclass(frozen=True)
class Since:
    """The version that added a field; at its default it is not part of an identity. `Annotated[int, Since("0.2")]`."""

    version: str


Place = Annotated[str, Role.PLACE]
"""A path, URI or artifact name; in an identity the digest of its content replaces it."""
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
