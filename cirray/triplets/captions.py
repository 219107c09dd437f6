"""Captions on disk: one row an image, in Parquet parts like triplets. No torch.

An artifact of kind "captions" holds `data/part-XXXXX.parquet` and `rejected/part-XXXXX.parquet` with reasons. Data is
written last: a part with data is finished.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cirray.core.artifacts import localize
from cirray.core.errors import DataError
from cirray.core.ids import IdMap, Ids
from cirray.triplets.store import DATA, REJECTED, read_tables, refuse_duplicates, write_part

KIND = "captions"
CAPTION_SCHEMA = pa.schema([pa.field(name, pa.string(), False) for name in ("image_id", "caption", "captioner", "key")])
"""`captioner` is a digest of weights, instruction and decoding; `key` also covers the image: equal keys, equal
captions."""
REJECTED_CAPTIONS = pa.schema([pa.field(name, pa.string(), False) for name in ("image_id", "reason")])


def write_captions(
    work_uri: str, name: str, rows: Iterable[Mapping[str, Any]], rejected: Iterable[Mapping[str, Any]] = ()
) -> None:
    """Write one part, as `write_part`."""
    refused = pa.Table.from_pylist(list(rejected), schema=REJECTED_CAPTIONS)
    write_part(work_uri, name, pa.Table.from_pylist(list(rows), schema=CAPTION_SCHEMA), refused)


def caption_table(uri: str) -> pa.Table:
    """All rows of an artifact (or of one being written), sorted by image id.

    Raises DataError naming a file that is damaged, or an image with two captions.
    """
    return _sorted(uri, DATA, CAPTION_SCHEMA)


def rejected_captions(uri: str) -> pa.Table:
    """Images without a caption, with reasons, sorted by image id."""
    return _sorted(uri, REJECTED, REJECTED_CAPTIONS)


def read_captions(uris: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Image id -> row of one or several captions artifacts.

    Raises ArtifactError: missing, incomplete or of another kind; DataError when two of them have different captions of
    an image.
    """
    found: dict[str, dict[str, Any]] = {}
    for uri in uris:
        for row in caption_table(str(localize(uri, KIND))).to_pylist():
            before = found.setdefault(row["image_id"], row)
            if before["caption"] != row["caption"]:
                raise DataError(
                    f"Image {row['image_id']!r} has two captions, {before['caption']!r} and {row['caption']!r} (in "
                    f"{uri!r}). Name one captions artifact per image."
                )
    return found


def known_captions(uris: Iterable[str]) -> IdMap[str]:
    """Caption by key, of all rows of some artifacts' folders."""
    asked = CAPTION_SCHEMA.empty_table(), *map(caption_table, uris)
    table = pa.concat_tables([rows.select(["key", "caption"]) for rows in asked])
    keys = pc.unique(table.column("key"))
    captions = table.column("caption").take(pc.index_in(keys, value_set=table.column("key")))
    return IdMap(Ids(keys), captions.combine_chunks(), str)


def _sorted(uri: str, folder: str, schema: pa.Schema) -> pa.Table:
    table = read_tables(uri, folder, schema, by=("image_id",))
    refuse_duplicates(table.column("image_id"), repr(uri))
    return table
