"""What becomes of one image, and such changes as rows of a gallery's table.

Shapes: Q tokens an image, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from cirray.catalogue.merging import now_ms
from cirray.core.errors import DataError, reason_of
from cirray.core.texts import is_whole
from cirray.index.shards import slot_of

OWN = "m_"
"""Columns of metadata begin with it, so that no name clashes with those of the table."""
MAX_ID = 1_024
"""Most characters of an id."""


@dataclass(frozen=True)
class Change:
    """One image as it is from now on, or, without vectors, the note that it is gone."""

    id: str
    tokens_QD: np.ndarray | None = None
    picture: bytes = b""
    """Encoded thumbnail; empty: none."""
    size: tuple[int, int] = (0, 0)
    """Width and height of the thumbnail."""
    content: str = ""
    """Digest of the original picture's bytes."""
    origin: str = ""
    """Path of its file, where it has one."""
    metadata: Mapping[str, Any] = field(default_factory=dict)


def columns_of(schema: pa.Schema) -> dict[str, pa.DataType]:
    """Names and types of a table's metadata columns."""
    return {item.name.removeprefix(OWN): item.type for item in schema if item.name.startswith(OWN)}


def rows_of_changes(changes: Sequence[Change], schema: pa.Schema) -> pa.Table:
    """Changes as rows of a table.

    Raises:
        DataError: naming the id whose change cannot be kept.
    """
    width = schema.field("vector").type.list_size
    for change in changes:
        _check(change, width)
    vectors = [_flat(change, width) for change in changes]
    values = pa.array(np.concatenate(vectors) if vectors else np.empty(0, np.float16))
    gone = [change.tokens_QD is None for change in changes]
    columns = {
        "id": pa.array([change.id for change in changes], pa.string()), "gone": pa.array(gone, pa.bool_()),
        "slot": pa.array([slot_of(change.id) for change in changes], pa.uint16()),
        "purged": pa.nulls(len(changes), pa.int64()), "at": pa.array([now_ms()] * len(changes), pa.int64()),
        "vector": pa.FixedSizeListArray.from_arrays(values, width),
        "content": pa.array([change.content for change in changes], pa.string()),
        "origin": pa.array([change.origin for change in changes], pa.string()),
        "width": pa.array([change.size[0] for change in changes], pa.uint16()),
        "height": pa.array([change.size[1] for change in changes], pa.uint16()),
        "picture": pa.array([change.picture for change in changes], pa.binary()),
        **_own(changes, columns_of(schema)),
    }  # fmt: skip
    return pa.table({name: columns[name] for name in schema.names})


def _own(changes: Sequence[Change], known: Mapping[str, pa.DataType]) -> dict[str, pa.Array]:
    for change in changes:
        odd = next((name for name in change.metadata if name not in known), None)
        if odd is not None:
            raise DataError(
                f"{change.id[:80]!r}: this gallery has no metadata column {odd[:80]!r}. It has "
                f"{', '.join(sorted(known)) or 'none'}; `cirray gallery --columns.NAME text` adds one."
            )
    found = {}
    for name, kind in known.items():
        try:
            found[f"{OWN}{name}"] = pa.array([change.metadata.get(name) for change in changes], kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"The metadata column {name!r} holds {kind}: {reason_of(error)}.") from None
    return found


def _check(change: Change, width: int) -> None:
    if not 0 < len(change.id) <= MAX_ID or not is_whole(change.id):
        raise DataError(f"The id {change.id[:80]!r} cannot be kept: 1 to {MAX_ID:,} characters of UTF-8 are needed.")
    if change.tokens_QD is None:
        return
    if change.tokens_QD.size != width:
        raise DataError(
            f"The vector of {change.id[:80]!r} has {change.tokens_QD.size:,} values; this gallery's have {width:,}."
        )
    if not np.isfinite(change.tokens_QD).all():
        raise DataError(f"The vector of {change.id[:80]!r} holds values that are not finite (NaN or infinity).")


def _flat(change: Change, width: int) -> np.ndarray:
    if change.tokens_QD is None:
        return np.zeros(width, np.float16)
    return np.asarray(change.tokens_QD, np.float16).reshape(-1)
