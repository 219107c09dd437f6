"""A field's annotation decides what typed characters mean.

A field that takes only text gets the characters as typed. In a field that takes other types too, one of its choices,
null, a number or a boolean is read as such, and everything else is text; text in quotes is always text.
`cirray.core.typed` has the syntax of numbers, booleans, null, lists and mappings.
"""

import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic
from pydantic import PlainSerializer

from cirray.core.typed import BOOLEANS, NULLS, Typed, collection, number, plain_number, scalar, unquoted, written


class _Kept:
    """The metadata of `Embedded`."""


Embedded = Annotated[Any, _Kept, PlainSerializer(written)]
"""A field of another configuration, whose own annotation reads it later: typed characters stay as typed."""


def read(annotation: Any, value: Any) -> Any:
    """A value with all typed characters in it read as the annotation says; sections read their own.

    A list takes one bare value, or an empty text as no item. A value that does not fit stays text, for validation.

    Raises ValueError for a word that is no boolean in a boolean field, or a list that is not closed.
    """
    if not isinstance(value, str | int | float | Mapping | list | tuple):
        return value
    shape = Shape.of(annotation)
    if shape.kept:
        return _opened(value)
    if isinstance(value, Typed):
        return shape.read(str(value))
    if isinstance(value, Mapping):
        return value if shape.section else {str(key): read(shape.values, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return shape.list_of(value)
    if shape.items is not None and not (shape.text or shape.free):
        return [] if value == "" else [value]
    return value


def plain(value: Any) -> Any:
    """A value with all typed characters in it read by the core schema, without an annotation."""
    return read(Any, value)


def typed(annotation: Any, value: Any) -> str:
    """How a value is typed on a command line, so that its field reads it again."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if read(annotation, Typed(text)) == value else json.dumps(value)


def _opened(value: Any) -> Any:
    """Typed lists and mappings as such, at any depth, their parts as typed."""
    value = collection(value) or value if isinstance(value, Typed) else value
    if isinstance(value, Mapping):
        return {str(name): _opened(item) for name, item in value.items()}
    return [_opened(item) for item in value] if isinstance(value, list | tuple) else value


@dataclass
class Shape:
    """Types that a field takes: all members of its annotation's union."""

    text: bool = False
    choices: tuple[Any, ...] = ()
    null: bool = False
    boolean: bool = False
    number: bool = False
    free: bool = False
    """Anything."""
    kept: bool = False
    """Anything, still as typed."""
    section: type[pydantic.BaseModel] | None = None
    """A class with fields."""
    items: Any = None
    """Annotation of the items of a list of any length."""
    fixed: tuple[Any, ...] = ()
    """Annotations of the items of a list of fixed length."""
    values: Any = None
    """Annotation of the values of a mapping with free keys."""

    @classmethod
    def of(cls, annotation: Any) -> "Shape":
        """The shape of an annotation; None means any value."""
        shape = cls()
        for member in _members(annotation):
            shape._add(member)
        return shape

    @property
    def values_section(self) -> type[pydantic.BaseModel] | None:
        """The class with fields that each value of a mapping with keys of one's own is."""
        return None if self.values is None else Shape.of(self.values).section

    @property
    def inner_section(self) -> type[pydantic.BaseModel] | None:
        """The class of a section, or of the sections in a list or mapping."""
        inner = self.values if self.items is None else self.items
        return self.section or (None if inner is None else Shape.of(inner).inner_section)

    def read(self, text: str) -> Any:
        """The value of typed characters. Raises ValueError: as `cirray.core.reading.read`."""
        if text in self.choices or (self.text and self == Shape(text=True, choices=self.choices)):
            return text
        if self.null and text.strip() in (("null",) if self.text else NULLS):
            return None
        quoted = unquoted(text) if self.text or self.free or self.choices else None
        if quoted is not None:
            return quoted
        found = self._collection(text)
        return found if found is not None else self._scalar(text)

    def list_of(self, values: Sequence[Any]) -> Any:
        """Items, each read by its own annotation."""
        if len(self.fixed) == len(values):
            return [read(kind, item) for kind, item in zip(self.fixed, values, strict=True)]
        return [read(self.items, item) for item in values]

    def _collection(self, text: str) -> Any:
        """A list or mapping, if the field takes one and the characters look like it, or if it takes nothing else."""
        lists, mappings = self.free or bool(self.fixed) or self.items is not None, self.free or self.values is not None
        found = collection(text) if lists or mappings or self.section else None
        if isinstance(found, list) and lists:
            return self.list_of(found)
        if isinstance(found, dict) and (mappings or self.section):
            return found if self.section else {key: read(self.values, item) for key, item in found.items()}
        if self.items is None or self.free or self.text:
            return None
        if text.startswith("[") and not Shape.of(self.items).text:
            raise ValueError("a list is written [a, b]")
        return [read(self.items, Typed(text))] if text.strip() else []

    def _scalar(self, text: str) -> Any:
        """Number, boolean or text; anything that the field does not take stays text."""
        if self.free or self.section:
            return scalar(text)
        stripped = text.strip()
        if self.boolean and stripped in BOOLEANS:
            return BOOLEANS[stripped]
        found = plain_number(stripped) if self.text else number(stripped)
        if self.number and found is not None:
            return found
        if self.boolean and not (self.text or self.number):
            others = "".join(f", {choice}" for choice in self.choices)
            raise ValueError(f"write one of true, false{others}")
        return text

    def _add(self, member: Any) -> None:
        origin, args = typing.get_origin(member), typing.get_args(member)
        if origin is Literal:
            self.choices += args
        elif origin is tuple and args[-1] is not Ellipsis:
            self.fixed = args
        elif origin in (tuple, list):
            self.items = args[0]
        elif origin is dict:
            self.values = args[1]
        elif isinstance(member, type) and issubclass(member, pydantic.BaseModel):
            self.section = member
        else:
            self.text |= member is str
            self.boolean |= member is bool
            self.number |= member in (int, float)
            self.null |= member is types.NoneType
            self.free |= member is Any
            self.kept |= member is _Kept


def _members(annotation: Any) -> Iterator[Any]:
    """Members of a union, without what `Annotated` adds."""
    if annotation is None:
        yield Any
    elif typing.get_origin(annotation) is Annotated:
        if _Kept in typing.get_args(annotation):
            yield _Kept
        yield from _members(typing.get_args(annotation)[0])
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for member in typing.get_args(annotation):
            yield from _members(member)
    else:
        yield annotation
