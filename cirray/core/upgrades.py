"""Artifacts of an earlier version: a configuration field that did not exist then counts as its default now."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic_core import to_jsonable_python

from cirray.core.config import Config


def with_new_fields(found: Any, wanted: Any) -> Any:
    """`found` with the fields that only `wanted` has, where `wanted` leaves them at their defaults.

    A section's class is known by its fields: a field is added when every configuration class that has all fields of
    the wanted section gives it the value it has there. What is not the default stays missing, so that the two differ.

    Args:
        found: plain values that an earlier version wrote.
        wanted: plain values of a resolved configuration of this version.
    """
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        filled = {name: with_new_fields(value, wanted.get(name)) for name, value in found.items()}
        new = [name for name in wanted if name not in found]
        classes = [cls for cls in _classes(Config) if new and set(wanted) <= set(cls.model_fields)]
        return filled | {name: wanted[name] for name in new if classes and _is_default(classes, name, wanted[name])}
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        return [with_new_fields(*pair) for pair in zip(found, wanted, strict=True)]
    return found


def _is_default(classes: list[type[Config]], name: str, value: Any) -> bool:
    defaults = [cls.model_fields[name].get_default(call_default_factory=True) for cls in classes]
    return all(to_jsonable_python(default, fallback=repr) == value for default in defaults)


def _classes(cls: type[Config]) -> Iterator[type[Config]]:
    for child in cls.__subclasses__():
        yield child
        yield from _classes(child)
