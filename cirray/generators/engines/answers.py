"""What models write around what was asked for: the JSON in an answer, and lines that cannot be used."""

import json
import re
from collections.abc import Iterator
from typing import Any

from cirray.types import MAX_TEXT

_LOOKED_AT = 16
"""Opening braces that are tried for an object."""


def line_defect(line: str) -> str:
    """What is wrong with one line of text, in words; empty: nothing."""
    if not line:
        return "is empty"
    return f"has a text of {len(line.split()):,} words, more than can be kept" if len(line) > MAX_TEXT else ""


def first_object(answer: str, name: str) -> dict[str, Any]:
    """The first JSON object of an answer that has a field; empty when there is none."""
    return next(objects(answer, name), {})


def objects(answer: str, name: str) -> Iterator[dict[str, Any]]:
    """JSON objects of an answer that have a field, inner ones too, in their order."""
    tried, end = 0, 0
    for match in re.finditer(r"\{", answer):
        if match.start() < end:
            continue
        tried += 1
        if tried > _LOOKED_AT:
            break
        try:
            found, past = json.JSONDecoder().raw_decode(answer, match.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and name in found:
            tried, end = 0, past
            yield found
