"""Keep a benchmark's val and test images out of training: find them, refuse them, record an override."""

import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import Any

from cirray.core.errors import DataError
from cirray.data.kinds import split_suffix

_SHOWN = 20
_CROP = re.compile(r"@-?\d[-\d.,e]*$")
_COCO = re.compile(r"^(?:COCO_(?:train|val|test)\d{4}_)?(?=\d{12}$)0*(\d+)$")
_SPEAKING = re.compile(r"^(?:(?:train|dev|test1)-\d+-\d+-img[01]|B0[0-9A-Z]{8})$")
"""Names that identify an image without its folder: CIRR's, and Fashion IQ's ASINs."""


def image_key(image_id: str) -> str:
    """What ids are compared by: the image of a crop, COCO's number, a name without its folder."""
    whole = split_suffix(_CROP.sub("", image_id))[0]
    base = posixpath.basename(whole)
    coco = _COCO.match(base)
    if coco:
        return coco.group(1)
    return base if _SPEAKING.match(base) else whole


def find_leaks(ids: Iterable[str], guards: Mapping[str, frozenset[str]]) -> dict[str, tuple[str, ...]]:
    """Guard -> the ids that are its images, sorted; guards without any are left out."""
    keys = {name: {image_key(image) for image in guarded} for name, guarded in guards.items()}
    found = {name: set[str]() for name in guards}
    for image in ids:
        key = image_key(image)
        for name, guarded in guards.items():
            if image in guarded or key in keys[name]:
                found[name].add(image)
    return {name: tuple(sorted(leaks)) for name, leaks in found.items() if leaks}


def refuse_leaks(
    ids: Iterable[str], guards: Mapping[str, frozenset[str]], allow: bool = False, what: str = "the training data"
) -> dict[str, Any]:
    """Refuse images of a benchmark's val and test splits (`guards`) in `what`; where they are allowed, the record has
    what was found.

    Returns: The record for a manifest: guarded images by benchmark, leaks by benchmark, whether they were allowed.

    Raises DataError with the list, unless allowed.
    """
    leaks = find_leaks(ids, guards)
    if leaks and not allow:
        parts = [f"{len(found):,} val or test images of {name}: {_list(found)}" for name, found in leaks.items()]
        raise DataError(
            f"{what} holds {'; '.join(parts)}. Leave them out (`exclude_ids` when mining), or set allow_leaks=true, "
            "which the manifest then records."
        )
    return {
        "guarded": {name: len(guarded) for name, guarded in guards.items()},
        "leaks": {name: list(found) for name, found in leaks.items()},
        "allowed": bool(leaks),
    }


def _list(ids: tuple[str, ...]) -> str:
    more = f" and {len(ids) - _SHOWN:,} more" if len(ids) > _SHOWN else ""
    return ", ".join(ids[:_SHOWN]) + more
