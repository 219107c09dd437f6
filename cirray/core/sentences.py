"""Errors of validation as sentences: path, value, known names, and the file."""

from collections.abc import Sequence
from typing import Any

import pydantic

from cirray.core.errors import unknown_name
from cirray.core.reading import Shape
from cirray.core.trees import Stack

_MEMBERS = frozenset(("int", "float", "str", "bool", "none", "constrained-int", "constrained-float"))


def sentences(cls: type[pydantic.BaseModel], error: pydantic.ValidationError, said: Stack) -> str:
    """All errors of one validation, those of one origin together."""
    told: dict[str, list[str]] = {}
    for item in error.errors():
        path = _true_path(item["loc"])
        below = said.below(path)
        alone = len(below) == 1 or item["type"] == "extra_forbidden"
        origin = said.origin(path).name or (below[0] if path and below and alone else "")
        told.setdefault(origin, []).append(_sentence(cls, item, path))
    return " ".join(f"{origin}: {' '.join(lines)}" if origin else " ".join(lines) for origin, lines in told.items())


def known_fields(cls: type[pydantic.BaseModel], path: Sequence[Any]) -> list[str]:
    """Names of the fields of a section, `path` the way to it; without a component's own (`cirray.core.components`)."""
    node = cls
    for part in path:
        field = node.model_fields.get(part)
        node = (Shape.of(field.annotation).inner_section or node) if field is not None else node
    return list(node.model_fields)


def _true_path(loc: Sequence[Any]) -> tuple[Any, ...]:
    """The way to a value, without the members of unions that pydantic adds (`constrained-int`, `literal[...]`)."""
    return tuple(part for part in loc if not (isinstance(part, str) and (part in _MEMBERS or "[" in part)))


def _sentence(cls: type[pydantic.BaseModel], item: Any, path: Sequence[Any]) -> str:
    name, section = ".".join(map(str, path)), ".".join(map(str, path[:-1]))
    if item["type"] == "extra_forbidden":
        known = (item.get("ctx") or {}).get("known") or known_fields(cls, path[:-1])
        names = [f"{section}.{field}" for field in known] if section else known
        return unknown_name(f"config field in section {section!r}" if section else "config field", name, names)
    if item["type"] == "missing":
        return f"Config field {name!r} is required and was not given."
    message = item["msg"].removeprefix("Value error, ").rstrip(".")
    message += ", written [a, b]" if item["type"] in ("tuple_type", "list_type") else ""
    if isinstance(item["input"], dict | pydantic.BaseModel):
        return f"Config section {name!r}: {message}." if name else f"Config: {message}."
    return f"Config field {name!r} has the value {item['input']!r}: {message}."
