"""Text and JSON as people save them: with or without a byte order mark, in UTF-8, UTF-16 or UTF-32."""

import codecs
import json
import re
from collections.abc import Callable
from typing import Any

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
BROKEN = "\ufffd"
"""Replaces a character that cannot be read."""


def encoding_of(head: bytes) -> str:
    """Encoding by a text's byte order mark; UTF-8 without one."""
    return next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")


def decoded(data: bytes) -> str:
    """A file's bytes as text.

    Raises UnicodeDecodeError when they are not of the encoding that their mark names (UTF-8 without one).
    """
    return data.decode(encoding_of(data[:4]))


def parse_json(data: bytes | str, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Value of a JSON text. Half of a surrogate pair (`"\\ud83d"` alone, a cut emoji) becomes U+FFFD, as browsers do.

    `pairs` makes the value of an object from its keys and values, in order.

    Raises ValueError: not text, or not JSON, or nested too deeply.
    """
    text = decoded(data) if isinstance(data, bytes) else data
    try:
        value = json.loads(text, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return _whole(value) if _HALF.search(text) else value


def whole(text: str) -> str:
    """The text with every half of a surrogate pair replaced by U+FFFD: what UTF-8 can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def is_whole(text: str) -> bool:
    """Whether UTF-8 can hold the text."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return whole(value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {_whole(key): _whole(item) for key, item in value.items()}
    return value
