"""What models write around what was asked for: finding the JSON in an answer."""

import json
import re
from typing import Any

_LOOKED_AT = 16
"""Opening braces that are tried."""


def first_object(answer: str, name: str) -> dict[str, Any]:
    """The first JSON object of an answer that has a field; empty when there is none."""
    for number, match in enumerate(re.finditer(r"\{", answer)):
        if number == _LOOKED_AT:
            break
        try:
            found, _ = json.JSONDecoder().raw_decode(answer, match.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and name in found:
            return found
    return {}
