"""A data set of triplets with their pictures as `cirray export triplets` writes it: a repository for the hub.

`triplets/SPLIT-*.parquet` has the columns of a triplets artifact, `images/*.parquet` each picture once (`id`, and
`image` as the library `datasets` keeps pictures); the card names both as configurations. `cirray.json` marks it. It is
read from a folder, or by its hub id from the hub's cache or the hub.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache

from cirray.core.errors import DataError, reason_of
from cirray.core.extras import require
from cirray.core.texts import parse_json
from cirray.triplets.schema import to_triplets
from cirray.types import Triplet

MARKER, TRIPLETS, IMAGES = "cirray.json", "triplets", "images"
FORMAT = 1
_ORDER = [(name, "ascending") for name in ("pair_id", "reference_id", "triplet_id")]
_READ = ("triplet_id", "pair_id", "reference_id", "target_id", "modification", "reverse_modification", "split",
         "source", "group_id", "weight", "edit", "positive_ids", "negative_ids")  # fmt: skip
_ASKED_S = 10.0


def shared_folder(root: str) -> Path | None:
    """The folder of such a repository, fetched where only the hub has it; None for anything else.

    Raises DataError for one of a newer release.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        folder = _fetched(root)
    marker = folder / MARKER
    if not marker.is_file():
        return None
    try:
        said = parse_json(marker.read_bytes())
    except ValueError as error:
        raise DataError(f"{str(marker)!r} is damaged ({reason_of(error)}). Fetch the data set again.") from None
    if not isinstance(said, dict) or said.get("kind") != TRIPLETS:
        return None
    if said.get("format") != FORMAT:
        raise DataError(f"{root!r} has format {said.get('format')!r}; this release reads {FORMAT}. Write it again.")
    return folder


def _fetched(root: str) -> Path:
    """A hub id's folder where it is such a repository; else a folder that is not there."""
    nothing = Path(root) / "nothing"
    if root.count("/") != 1 or root.startswith(("/", ".", "~")):
        return nothing
    if isinstance(try_to_load_from_cache(root, MARKER, repo_type="dataset"), str):
        return Path(snapshot_download(root, repo_type="dataset", local_files_only=True))
    try:
        names = [item.rfilename for item in HfApi().dataset_info(root, timeout=_ASKED_S).siblings or ()]
    except Exception:  # noqa: BLE001 - whatever the network's library raises; the library `datasets` then says why
        return nothing
    return Path(snapshot_download(root, repo_type="dataset")) if MARKER in names else nothing


def shared_triplets(folder: Path) -> tuple[Triplet, ...]:
    """All triplets, in the order of a triplets artifact. Raises DataError naming a file that is missing or damaged."""
    try:
        tables = [pq.read_table(path, columns=list(_READ)) for path in _files(folder, TRIPLETS)]
        table = pa.concat_tables(tables).sort_by(_ORDER)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"The triplets in {str(folder)!r} cannot be read: {reason_of(error)}.") from None
    return tuple(to_triplets(table))


def picture_files(folder: Path) -> list[Path]:
    """The pictures as Arrow files, in which they lie byte for byte; made once by the library `datasets`, a part at a
    time, in its cache.

    Raises DataError when they cannot be read.
    """
    require("datasets", "hub", f"Reading the pictures of {str(folder)!r}")
    library: Any = importlib.import_module("datasets")
    files = [str(path) for path in _files(folder, IMAGES)]
    try:
        loaded = library.load_dataset("parquet", data_files=files, split="train")
    except Exception as error:  # noqa: BLE001 - whatever the library raises for damaged files
        raise DataError(f"The pictures in {str(folder)!r} cannot be read: {reason_of(error, 200)}.") from None
    return [Path(item["filename"]) for item in loaded.cache_files]


def _files(folder: Path, name: str) -> Sequence[Path]:
    found = sorted((folder / name).glob("*.parquet"))
    if not found:
        raise DataError(f"{str(folder)!r} holds no {name}/*.parquet. Fetch or write the data set again.")
    return found
