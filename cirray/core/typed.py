"""Text as typed: characters of a file or a command line, not yet read as text, number or anything else.

Their syntax is YAML 1.2's core schema (yaml.org/spec/1.2.2, section 10.3.2): `1e-3` is a number, `no` is a text.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

NULLS = ("null", "Null", "NULL", "~", "")
BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_OTHER_BASE = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_PLAIN_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_CLOSING = {"[": "]", "{": "}"}


class Typed(str):
    """Characters as typed, not yet read."""

    __slots__ = ()


def written(value: Any) -> Any:
    """Values with typed characters in them, as plain values that are typed the same again.

    `null`, a boolean, and a number in its own spelling are such; anything else typed is text, as `012` and `1e5` are.
    """
    if isinstance(value, Mapping):
        return {name: written(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [written(item) for item in value]
    if not isinstance(value, Typed):
        return value
    found = scalar(value)
    return found if isinstance(found, bool) or found is None or json.dumps(found) == value else str(value)


class _AsTyped(yaml.constructor.SafeConstructor):
    """Unquoted scalars stay as typed; a repeated key is refused."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys are text."""
        names = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice!r} appears twice", node.start_mark)
        return {str(key): value for key, value in super().construct_mapping(node, deep).items()}

    def characters(self, node: Any) -> str:
        """An unquoted scalar as typed, a quoted one as text."""
        text = str(self.construct_scalar(node))
        return text if node.style else Typed(text)


for _kind in ("null", "bool", "int", "float", "timestamp", "str", "value"):
    _AsTyped.add_constructor(f"tag:yaml.org,2002:{_kind}", _AsTyped.characters)  # type: ignore[type-var]


class _Loader(_AsTyped, yaml.SafeLoader):
    """Parses in Python; its errors name the character."""


class _FastLoader(_AsTyped, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Parses in C, ten times as fast, where PyYAML was built so."""


def parse_yaml(text: str) -> Any:
    """Value of a YAML text, its unquoted scalars as typed; None for a text of comments.

    Raises: yaml.YAMLError: when it is not YAML.
    """
    try:
        return yaml.load(text, _FastLoader)
    except yaml.YAMLError:
        return yaml.load(text, _Loader)


def scalar(text: str) -> Any:
    """Null, boolean or number of the core schema, or the text itself."""
    stripped = text.strip()
    if stripped in NULLS:
        return None
    found = BOOLEANS.get(stripped, number(stripped))
    return str(text) if found is None else found


def number(text: str) -> int | float | None:
    """Number of the core schema, or None."""
    try:
        if _INTEGER.fullmatch(text):
            return int(text)
        if _OTHER_BASE.fullmatch(text):
            return int(text, 0)
    except ValueError:
        return None  # thousands of digits
    if _FLOAT.fullmatch(text):
        return float(text)
    return float(text.replace(".", "")) if _NOT_FINITE.fullmatch(text) else None


def plain_number(text: str) -> int | float | None:
    """A number that is hardly meant as text, `12` or `1e-3` but not `012` (those of JSON: RFC 8259, section 6)."""
    return number(text) if _PLAIN_NUMBER.fullmatch(text) else None


def collection(text: str) -> dict[str, Any] | list[Any] | None:
    """`[a, b]` or `{a: b}`, the parts as typed, if a text looks like one; else None. Quoted parts are text.

    A part may hold any character but a comma, a bracket that is not closed and, as a key, a colon with a space.
    """
    stripped = text.strip()
    if len(stripped) < 2 or _CLOSING.get(stripped[0]) != stripped[-1]:
        return None
    parts = [*_parts(stripped[1:-1])]
    if stripped[0] == "[":
        return [_part(part) for part in parts]
    pairs = [_pair(part) for part in parts]
    return None if None in pairs else dict(pair for pair in pairs if pair)


def unquoted(text: str) -> str | None:
    """The text inside quotes, if it begins and ends with the same ones; else None."""
    stripped = text.strip()
    if len(stripped) < 2 or stripped[0] != stripped[-1] or stripped[0] not in "\"'":
        return None
    if stripped[0] == "'":
        return stripped[1:-1].replace("''", "'")
    try:
        return str(json.loads(stripped))
    except ValueError:
        return None


def _part(text: str) -> str:
    quoted = unquoted(text)
    return Typed(text.strip()) if quoted is None else quoted


def _pair(text: str) -> tuple[str, str] | None:
    """Key and value; JSON's `"key":value` needs no space after the colon."""
    found = re.match(r"""\s*("(?:[^"\\]|\\.)*"|'(?:[^']|'')*')\s*:(.*)|(.*?):(\s.*|$)""", text, flags=re.S)
    if found is None:
        return None
    quoted, after, name, value = found.groups()
    return (str(unquoted(quoted)), _part(after)) if quoted else (name.strip(), _part(value))


def _parts(text: str) -> Iterator[str]:
    """The parts between commas outside brackets and quotes; none for an empty text."""
    start, depth, quote = 0, 0, ""
    for at, char in enumerate(text):
        begins = not text[start:at].strip() or text[:at].rstrip()[-1:] in ("[", "{", ",", ":")
        if quote:
            escaped = quote == '"' and (len(text[:at]) - len(text[:at].rstrip("\\"))) % 2
            quote = "" if char == quote and not escaped else quote
        elif char in "\"'" and begins:
            quote = char
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        elif char == "," and depth == 0:
            yield text[start:at]
            start = at + 1
    if text[start:].strip():
        yield text[start:]
