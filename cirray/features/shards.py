"""Shards of a features artifact being written; any worker on any node may write one, atomically.

The ids file is written last: a shard with ids is finished. Rows that have no features (images that cannot be read) are
listed with their reason in `rejected/part-XXXXX.json`. `contents/part-XXXXX.json`: image id -> digest of the file's
bytes, also for rejected ones.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from cirray.core import storage
from cirray.core.contents import file_digest
from cirray.core.errors import ArtifactError, damage_told
from cirray.types import part_name, stable_id

FOLDER = "shards"
REJECTED = "rejected"
CONTENTS = "contents"
PARTS = (f"{FOLDER}/*", f"{REJECTED}/*")
"""Files from which a restarted embedding stage goes on."""


class FeatureShardWriter:
    """Writes shards of one artifact below its stage's `work_uri`."""

    def __init__(self, work_uri: str) -> None:
        """Nothing is written yet."""
        self.work_uri = work_uri

    def write(
        self, part: int, ids: Sequence[str], patches_BPD: np.ndarray, rejected: Sequence[tuple[str, str]] = (),
        contents: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Write one shard, tokens as fp16; writing it again replaces it by the same bytes.

        `rejected` are (image id, reason) of the part's images without features; `contents` are image id ->
        `cirray.data.images.picture_digest` of its file, if the features are of files.

        Raises ArtifactError when ids and rows differ in number, or a vector is not finite in fp16.
        """
        values = np.asarray(patches_BPD, dtype=np.float16)
        if len(values) != len(ids) or values.ndim != 3:
            raise ArtifactError(f"Shard {part} has {len(ids)} ids for an array of shape {values.shape}.")
        if not np.isfinite(values).all():
            bad = ids[int(np.argwhere(~np.isfinite(values))[0][0])]
            raise ArtifactError(f"The features of image {bad!r} are not finite in fp16; the tower cannot be used.")
        buffer = io.BytesIO()
        np.save(buffer, values, allow_pickle=False)
        name = part_name(part)
        if rejected:
            rows = [{"image_id": image_id, "reason": reason} for image_id, reason in rejected]
            storage.write_bytes(storage.join(self.work_uri, REJECTED, f"{name}.json"), _json(rows))
        if contents:
            storage.write_bytes(storage.join(self.work_uri, CONTENTS, f"{name}.json"), _json(dict(contents)))
        storage.write_bytes(storage.join(self.work_uri, FOLDER, f"{name}.npy"), buffer.getvalue())
        storage.write_bytes(storage.join(self.work_uri, FOLDER, f"{name}.ids.json"), _json(list(ids)))


def forget_part(work_uri: str, part: int) -> None:
    """Remove a finished shard whose images have changed; it counts as not made."""
    name = part_name(part)
    for folder, file in ((FOLDER, f"{name}.ids.json"), (REJECTED, f"{name}.json"), (CONTENTS, f"{name}.json")):
        storage.remove(storage.join(work_uri, folder, file))


def finished_parts(work_uri: str) -> Iterator[tuple[int, list[str], list[tuple[str, str]]]]:
    """Finished shards of an artifact being written, in order: part, ids with features, rejected (id, reason)."""
    shards, refused = set(storage.list_files(storage.join(work_uri, FOLDER))), read_rejected(work_uri)
    for name in sorted(name.removesuffix(".ids.json") for name in shards if name.endswith(".ids.json")):
        if f"{name}.npy" in shards:
            part = int(name.removeprefix("part-"))
            yield part, read_shard_ids(storage.join(work_uri, FOLDER), name), refused.get(part, [])


def read_rejected(uri: str) -> dict[int, list[tuple[str, str]]]:
    """Images without features, by part: (image id, reason)."""
    folder = storage.join(uri, REJECTED)
    found = {}
    for name in storage.list_files(folder):
        with damage_told(storage.join(folder, name), "Embed again."):
            rows = json.loads(storage.read_bytes(storage.join(folder, name)))
            found[int(name.removeprefix("part-").removesuffix(".json"))] = [(r["image_id"], r["reason"]) for r in rows]
    return found


def read_contents(uri: str, parts: Sequence[int] | None = None) -> dict[str, str]:
    """Image id -> digest of the embedded or rejected file, of all parts or some; empty if none is noted."""
    folder = storage.join(uri, CONTENTS)
    places = storage.list_files(folder) if parts is None else [f"{part_name(part)}.json" for part in parts]
    found: dict[str, str] = {}
    for place in (storage.join(folder, name) for name in places):
        if parts is None or storage.exists(place):
            with damage_told(place, "Embed again."):
                found |= dict(json.loads(storage.read_bytes(place)))
    return found


def read_shard_ids(folder: str, name: str) -> list[str]:
    """Ids of one shard's rows. Raises ArtifactError naming the file when it is missing or damaged."""
    uri = storage.join(folder, f"{name}.ids.json")
    try:
        ids = json.loads(storage.read_bytes(uri))
    except ValueError as error:
        raise ArtifactError(f"The ids of a feature shard, {uri!r}, are damaged ({error}). Embed again.") from None
    if not isinstance(ids, list) or not all(isinstance(item, str) for item in ids):
        raise ArtifactError(f"The ids of a feature shard, {uri!r}, are damaged (no list of texts). Embed again.")
    return ids


def shard_digest(folder: str, name: str) -> str:
    """Digest over the vectors and the ids of one shard."""
    return stable_id(*(file_digest(storage.join(folder, f"{name}{end}")) for end in (".npy", ".ids.json")))


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8")
