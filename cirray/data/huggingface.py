"""Hugging Face data sets of triplets: Arrow files are memory-mapped and pictures read where they are.

A folder that `save_to_disk` wrote is read with pyarrow alone; a hub id needs the optional library `datasets`, which
fetches the same kind of files. What `cirray export triplets` wrote is read with it too (`shared.py`).
"""

import hashlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from cirray.core.errors import DataError, reason_of, unknown_name
from cirray.core.extras import install_line
from cirray.core.places import is_hub_id
from cirray.data.annotations import blank_note, load_json
from cirray.data.benchmark import CirDataset, ImageTable, Protocol, count_note
from cirray.data.config import HuggingFaceConfig
from cirray.data.kinds import HEAD_BYTES, sniff, split_suffix
from cirray.data.places import Span
from cirray.data.readers import READERS
from cirray.data.shared import IMAGES, picture_files, shared_folder, shared_triplets
from cirray.data.tables import is_null, plain_number
from cirray.types import Query, Triplet

_TAIL = 4096
_UNCOMPRESSED = ("BMP", "TIFF", "PPM")
"""Formats in which two pictures may be equally long and end alike."""


class _Cell(NamedTuple):
    """An image of a row: bytes inside a file, or a path; and its name."""

    file: str
    span: Span | None
    name: str


@dataclass
class _Images:
    """Images found so far. Rows repeat them: equal name, size and end are one image."""

    root: Path
    paths: dict[str, str] = field(default_factory=dict)
    spans: dict[str, Span] = field(default_factory=dict)
    clashes: list[str] = field(default_factory=list)
    _known: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def add(self, cell: "_Cell | str", row_name: str, given: str | None = None) -> str:
        """Id of an image: the given one, the name it carries, or its row."""
        if isinstance(cell, str):
            self.paths.setdefault(cell, str(self.root / cell))
            return cell
        image_id, looks = given or split_suffix(Path(cell.name).name)[0] or row_name, _looks(cell)
        if self._known.get(image_id, looks) != looks:
            self.clashes.append(f"{image_id} in {row_name}")
            image_id = row_name
        if image_id not in self._known:
            self._known[image_id] = looks
            self.paths[image_id] = cell.file
            if cell.span is not None:
                self.spans[image_id] = cell.span
        return image_id


@READERS.register("huggingface")
def read_huggingface(config: HuggingFaceConfig) -> CirDataset:
    """Read triplets, queries and gallery from splits; no picture is decoded or copied.

    Raises DataError: no such folder, hub data set or split, a missing column, compressed Arrow files, or a text or
    image that is none.
    """
    root = Path(config.root).expanduser()
    images, left, absent = _Images(root), list[str](), list[str]()
    if (folder := shared_folder(config.root)) is not None:
        return _shared(config, folder, images)
    gallery = []
    for row in _rows(config, config.gallery, (config.image,), (config.id,)):
        if is_null(row.values[config.image]):
            absent.append(row.name)
        else:
            gallery.append(_gallery_id(config, images, row))
    triplets = []
    for row in _labelled(config, config.triplets):
        triple = _triple(config, images, row)
        if triple is None or not triple[2].strip() or triple[0] == triple[1]:
            left.append(row.name)
            continue
        reference, target, text = triple
        split = "val" if config.triplets in ("val", "validation", "dev") else "train"
        triplets.append(Triplet(f"hf-{row.name}", reference, target, text, split=split, group_id=reference))
    queries, missing = [], list[str]()
    for row in _labelled(config, config.queries):
        triple = _triple(config, images, row)
        if triple is None:
            missing.append(row.name)
            continue
        queries.append(Query(row.name, triple[0], triple[2], (triple[1],)))
    own = dict.fromkeys(image for query in queries for image in (*query.target_ids, query.reference_id))
    ids = tuple(dict.fromkeys(gallery)) or tuple(own)
    return CirDataset(
        name=Path(config.root).name,
        images=ImageTable(images.paths, spans=images.spans),
        protocol=Protocol(
            dataset=Path(config.root).name,
            split=config.queries or "none",
            gallery_rule=f"{len(ids):,} images of " + (f"split {config.gallery!r}" if gallery else "the queries"),
            reference_rule=config.reference_rule,
            ks=config.ks,
        ),
        triplets=tuple(triplets),
        queries=tuple(queries),
        gallery_ids=ids,
        notes=(
            *count_note("triplets left out (blank text, or an image missing or twice)", left),
            *count_note("queries left out because an image is null", missing),
            *count_note("gallery rows left out because their image is null", absent),
            *blank_note(queries),
            *count_note("images share a name with another picture and are called by their row", images.clashes),
        ),
    )


def _shared(config: HuggingFaceConfig, folder: Path, images: _Images) -> CirDataset:
    """Triplets and pictures that `cirray export triplets` wrote."""
    for row in _rows_of(picture_files(folder), config, IMAGES, ("image", "id"), ()):
        images.add(_image(row, "image"), row.name, str(row.values["id"]))
    name = Path(config.root).name
    protocol = Protocol(name, gallery_rule="none", reference_rule=config.reference_rule, ks=config.ks)
    return CirDataset(
        name=name, images=ImageTable(images.paths, spans=images.spans), protocol=protocol,
        triplets=shared_triplets(folder),
        notes=count_note("images share a name with another picture and are called by their row", images.clashes),
    )  # fmt: skip


class _Row(NamedTuple):
    """One row: its name for errors, and its values; pictures are `_Cell`s."""

    name: str
    values: dict[str, Any]


def _labelled(config: HuggingFaceConfig, split: str) -> Iterator[_Row]:
    wanted = (config.reference, config.target, config.modification)
    yield from _rows(config, split, wanted, (f"{config.reference}_id", f"{config.target}_id"))


def _triple(config: HuggingFaceConfig, images: _Images, row: _Row) -> tuple[str, str, str] | None:
    """Reference, target and text of a row, a null text being blank; None where an image is null."""
    if is_null(row.values[config.reference]) or is_null(row.values[config.target]):
        return None
    ids = []
    for column in (config.reference, config.target):
        given = row.values.get(f"{column}_id")
        cell = _image(row, column)
        ids.append(images.add(cell, f"{row.name}/{column}", None if is_null(given) else str(plain_number(given))))
    text = row.values[config.modification]
    text = "" if is_null(text) else text
    if not isinstance(text, str):
        raise DataError(f"Row {row.name} has {text!r} in column {config.modification!r}, which is not a text.")
    return ids[0], ids[1], text


def _gallery_id(config: HuggingFaceConfig, images: _Images, row: _Row) -> str:
    given = row.values.get(config.id)
    return images.add(_image(row, config.image), row.name, None if is_null(given) else str(plain_number(given)))


def _image(row: _Row, column: str) -> "_Cell | str":
    value = plain_number(row.values[column])
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, _Cell | str) or not value:
        raise DataError(f"Row {row.name} has {value!r} in column {column!r}, which is neither an image nor an id.")
    return value


def _rows(config: HuggingFaceConfig, split: str, needed: Sequence[str], more: Sequence[str]) -> Iterator[_Row]:
    if split:
        yield from _rows_of(_arrow_files(config, split), config, split, needed, more)


def _rows_of(
    paths: Sequence[Path], config: HuggingFaceConfig, split: str, needed: Sequence[str], more: Sequence[str]
) -> Iterator[_Row]:
    row = 0
    for path in paths:
        for batch, base in _batches(path):
            missing = [name for name in needed if name not in batch.schema.names]
            if missing:
                raise DataError(
                    f"Split {split!r} of {config.root!r} has no column {missing[0]!r}; it has: "
                    f"{', '.join(batch.schema.names)}. Name the right one in `data.huggingface`."
                )
            present = [name for name in (*needed, *more) if name in batch.schema.names]
            columns = {name: _column(path, batch, base, name) for name in present}
            for at in range(batch.num_rows):
                yield _Row(f"{split}-{row}", {name: value(at) for name, value in columns.items()})
                row += 1


def _arrow_files(config: HuggingFaceConfig, split: str) -> list[Path]:
    root = Path(config.root).expanduser()
    if root.is_dir():
        return _saved_files(root, split)
    if not is_hub_id(config.root):
        raise DataError(f"{config.root!r} is neither a folder of `save_to_disk` nor a hub id of the form owner/name.")
    try:
        library = importlib.import_module("datasets")
    except ImportError:
        raise DataError(
            f"Reading {config.root!r} from the hub needs the library `datasets`: {install_line('hub')}. A folder "
            "that `save_to_disk` wrote is read without it."
        ) from None
    try:
        loaded = library.load_dataset(config.root, config.name or None, split=split)
    except (OSError, ValueError) as error:
        reason = reason_of(error, 200)
        raise DataError(f"Split {split!r} of {config.root!r} cannot be loaded from the hub: {reason}.") from None
    return [Path(item["filename"]) for item in loaded.cache_files]


def _saved_files(root: Path, split: str) -> list[Path]:
    """Data files of a split, as `state.json` lists them."""
    index = root / "dataset_dict.json"
    if index.is_file():
        splits = load_json(index).get("splits", [])
        if split not in splits:
            raise DataError(f"{str(root)!r}: {unknown_name('split', split, splits)}")
        root = root / split
    state = root / "state.json"
    if not state.is_file():
        raise DataError(f"{str(root)!r} holds no `state.json`; give a folder that `save_to_disk` wrote.")
    values = load_json(state)
    if values.get("_indices_data_files"):
        raise DataError(f"{str(root)!r} selects rows by an index; save it again after `flatten_indices()`.")
    return [root / item["filename"] for item in values.get("_data_files", [])]


def _batches(path: Path) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Record batches of a mapped Arrow stream, and the address where the file begins; their buffers lie in it."""
    try:
        with pa.memory_map(str(path)) as source:
            whole = source.read_buffer()
            for batch in pa.ipc.open_stream(pa.BufferReader(whole)):
                yield batch, whole.address
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{str(path)!r} is not an Arrow file ({' '.join(str(error).split())[:120]}).") from None


def _column(path: Path, batch: pa.RecordBatch, base: int, name: str) -> Callable[[int], Any]:
    """Value of a row; the bytes of pictures are not touched."""
    column = batch.column(name)
    if not pa.types.is_struct(column.type):
        return partial(_plain, column)
    fields = [column.type.field(number).name for number in range(column.type.num_fields)]
    if "bytes" not in fields:
        raise DataError(f"Column {name!r} of {str(path)!r} is a structure without `bytes`; an image is expected.")
    data, names = column.field("bytes"), column.field("path") if "path" in fields else None
    first_B, bytes_B = _spans(path, data, base)
    valid = column.is_valid()

    def value(at: int) -> _Cell | None:
        if not valid[at].as_py():  # the children of a null hold empty values, not nulls
            return None
        own = str(names[at].as_py() or "") if names is not None else ""
        if data[at].is_valid:
            return _Cell(str(path), (int(first_B[at]), int(bytes_B[at])), own)
        return _Cell(str(path.parent / own), None, own) if own else None

    return value


def _plain(column: pa.Array, at: int) -> Any:
    """A plain value; bytes of a text that are not UTF-8 become U+FFFD."""
    try:
        return column[at].as_py()
    except UnicodeDecodeError:
        return column[at].as_buffer().to_pybytes().decode("utf-8", "replace")


def _spans(path: Path, data: pa.BinaryArray, base: int) -> tuple[np.ndarray, np.ndarray]:
    """First byte in the file and length of every value, from the addresses of a mapped file's buffers."""
    wide = pa.types.is_large_binary(data.type)
    buffers = data.buffers()
    ends = np.frombuffer(buffers[1], dtype=np.int64 if wide else np.int32)[data.offset : data.offset + len(data) + 1]
    start = buffers[2].address - base if buffers[2] is not None else 0
    if not 0 <= start <= path.stat().st_size:
        raise DataError(f"{str(path)!r} is compressed inside; save the data set again without compression.")
    return start + ends[:-1].astype(np.int64), np.diff(ends).astype(np.int64)


def _looks(cell: _Cell) -> tuple[Any, ...]:
    """Size and digest of the last bytes, which differ between different compressed pictures; else of all bytes."""
    if cell.span is None:
        return (cell.file,)
    begin, size = cell.span
    with open(cell.file, "rb") as stream:
        stream.seek(begin)
        tail = size if sniff(stream.read(min(size, HEAD_BYTES))) in _UNCOMPRESSED else min(size, _TAIL)
        stream.seek(begin + size - tail)
        return size, hashlib.blake2b(stream.read(tail), digest_size=8).hexdigest()
