"""Captions on disk: one row an image, in Parquet parts like triplets. No torch.

An artifact of kind "captions" holds `data/part-XXXXX.parquet` and `rejected/part-XXXXX.parquet` with reasons. Data is
written last: a part with data is finished.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from cirray.core import storage
from cirray.core.artifacts import localize
from cirray.core.errors import DataError
from cirray.triplets.store import DATA, REJECTED, read_file, write_table

KIND = "captions"
CAPTION_SCHEMA = pa.schema(
    [pa.field(name, pa.string(), False) for name in ("image_id", "caption", "captioner", "prompt_version")]
    + [pa.field("words", pa.int64(), False), pa.field("key", pa.string(), False)]
)
"""`captioner` digests weights and decoding, `words` is what the prompt asks for; `key` also covers what the captioner
read of the image: equal keys, equal captions."""
REJECTED_CAPTIONS = pa.schema([pa.field(name, pa.string(), False) for name in ("image_id", "reason")])


def write_captions(
    work_uri: str, name: str, rows: Iterable[Mapping[str, Any]], rejected: Iterable[Mapping[str, Any]] = ()
) -> None:
    """Write one part: rejected rows first, then data, whose presence says that the part is finished."""
    refused = pa.Table.from_pylist(list(rejected), schema=REJECTED_CAPTIONS)
    if len(refused):
        write_table(storage.join(work_uri, REJECTED, f"{name}.parquet"), refused)
    table = pa.Table.from_pylist(list(rows), schema=CAPTION_SCHEMA)
    write_table(storage.join(work_uri, DATA, f"{name}.parquet"), table)


def finished_images(work_uri: str) -> dict[str, set[str]]:
    """Image ids (captioned and rejected) of every finished part: part name -> ids."""
    found = {}
    refused = storage.list_files(storage.join(work_uri, REJECTED))
    for name in storage.list_files(storage.join(work_uri, DATA)):
        ids = set(read_file(work_uri, DATA, name, CAPTION_SCHEMA).column("image_id").to_pylist())
        if name in refused:
            ids |= set(read_file(work_uri, REJECTED, name, REJECTED_CAPTIONS).column("image_id").to_pylist())
        found[name.removesuffix(".parquet")] = ids
    return found


def caption_table(uri: str) -> pa.Table:
    """All rows of an artifact (or of one being written), sorted by image id.

    Raises:
        DataError: naming a file that is damaged, or an image with two captions.
    """
    return _sorted(uri, DATA, CAPTION_SCHEMA)


def rejected_captions(uri: str) -> pa.Table:
    """Images without a caption, with reasons, sorted by image id."""
    return _sorted(uri, REJECTED, REJECTED_CAPTIONS)


def read_captions(uris: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Image id -> row of one or several captions artifacts.

    Raises:
        ArtifactError: missing, incomplete or of another kind.
        DataError: when two of them say different things of an image.
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


def _sorted(uri: str, folder: str, schema: pa.Schema) -> pa.Table:
    names = [name for name in storage.list_files(storage.join(uri, folder)) if name.endswith(".parquet")]
    tables = [read_file(uri, folder, name, schema) for name in names]
    table = (pa.concat_tables(tables) if tables else schema.empty_table()).sort_by("image_id").combine_chunks()
    ids = table.column("image_id").to_pylist()
    if len(set(ids)) != len(ids):
        double = next(item for item, after in zip(ids, ids[1:], strict=False) if item == after)
        raise DataError(f"Image {double!r} stands twice in {uri!r}; make the captions again.")
    return table
