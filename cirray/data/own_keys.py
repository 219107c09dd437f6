"""What a triplet has and another program's layout has not, under one key of its entry that other programs pass over."""

from dataclasses import asdict, fields, replace
from typing import Any

from cirray.core.errors import unknown_name
from cirray.data.annotations import Record
from cirray.data.tables import is_null
from cirray.types import Triplet

KEY = "cirray"
_NAMES = {item.name for item in fields(Triplet)} - {"modification"}


def own_keys(row: Triplet) -> dict[str, Any]:
    """The triplet's fields for its entry, all but the text."""
    return {KEY: {name: value for name, value in asdict(row).items() if name in _NAMES}}


def restored(record: Record, row: Triplet) -> Triplet:
    """The triplet of an entry with what stands under `KEY`, if it has that.

    Raises DataError: naming the entry and the key that is unknown or of another type.
    """
    if KEY not in record.values:
        return row
    own = record.section(KEY)
    for name in own.values:
        if name not in _NAMES:
            own.fail(unknown_name("key", name, _NAMES))
    values: dict[str, Any] = {name: _value(own, name) for name in own.values}
    return replace(row, **values)


def _value(own: Record, name: str) -> Any:
    value = own.get(name)
    if name in ("positive_ids", "negative_ids"):
        return own.ids(name)
    if name == "weight":
        weight = own.number(name, value)
        return weight if weight >= 0 else own.fail(f"key 'weight' has the value {value!r}; at least 0 is accepted.")
    return None if name == "reverse_modification" and is_null(value) else own.as_text(name, value)
