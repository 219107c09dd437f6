"""What an index is made of: the pictures of a folder beside what its index held, or the gallery of a data set.

Nothing here loads a model, so that an index that is up to date is told in a second.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pyarrow as pa

from cirray.core.artifacts import is_complete, read_manifest
from cirray.core.errors import ArtifactError, ConfigError, DataError
from cirray.core.log import get_logger
from cirray.data.benchmark import CirDataset
from cirray.data.changes import Changes, Seen, compare
from cirray.data.config import ImageLimits
from cirray.data.listing import list_pictures, picture_ids
from cirray.data.places import Place
from cirray.data.readers import read_dataset
from cirray.features.shards import read_contents, read_rejected
from cirray.features.store import FeatureStore
from cirray.index.store import KIND
from cirray.pipelines.data.datasets import asked_digest, contents_of
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.search.metadata import metadata_for
from cirray.pipelines.search.rows import read_seen
from cirray.transforms import REVISION
from cirray.types import stable_id

_LOGGER = get_logger("pipelines.index")
_CHANGED = "The picture is not the one that was embedded; its file has changed. Embed it again (cirray embed)."


@dataclass(frozen=True)
class IndexPlan:
    """What to encode: ids ascending, files of those that have one, digests of all inputs."""

    ids: tuple[str, ...]
    paths: dict[str, str]
    inputs: dict[str, str]
    features_digest: str = ""
    rejected: tuple[tuple[str, str], ...] = ()
    """Gallery images without features, or changed since: id and reason."""
    contents: Mapping[str, str] = field(default_factory=dict)
    """Digests of the files' bytes by id, where they were read."""
    notes: tuple[str, ...] = ()
    """Notes of the folder's listing: files left out, folders that cannot be listed; and of the metadata."""
    folder: str = ""
    """Whole path of a folder that is indexed."""
    changes: Changes | None = None
    """That folder beside what the index at this place was made of."""
    metadata: pa.Table | None = None
    """Columns about the images, one row an id."""

    def key(self, image_id: str) -> str:
        """What identifies an image's row; empty for a file that could not be read."""
        return image_id if self.changes is None else self.contents[image_id]

    def metadata_of(self, ids: Sequence[str]) -> pa.Table | None:
        """The metadata of some of the images, in their order."""
        rows = {name: row for row, name in enumerate(self.ids)}
        return None if self.metadata is None else self.metadata.take(pa.array([rows[name] for name in ids], pa.int64()))


def make_plan(run: IndexRun) -> IndexPlan:
    """List the images to index and the digests of all inputs; reads pictures' bytes, decodes none.

    Of a folder whose index is at `out`, only files that were touched since are read.

    Raises ArtifactError: checkpoint or features are missing, or the index of another folder is at `out`; ConfigError:
    neither images nor features were named; DataError: the folder holds no image, features lack some of the gallery, or
    metadata that cannot be used.
    """
    checkpoint = read_manifest(run.checkpoint, "checkpoint")
    inputs = {"checkpoint": checkpoint.digest, "features": "", "data": ""}
    if run.images is None and not run.features:
        raise ConfigError("Nothing to index: give `images` (a folder) or `features` (features artifacts).")
    plan = _features_plan(run, inputs) if run.images is None else _folder_plan(run, run.images, inputs)
    return _with_metadata(run, plan) if run.metadata else plan


def _with_metadata(run: IndexRun, plan: IndexPlan) -> IndexPlan:
    """The plan with its metadata, which is read before any image is encoded."""
    names = {image: Place.parse(text).name(image) for image, text in plan.paths.items()}
    table, notes = metadata_for(run.metadata, plan.ids, names)
    for note in notes:
        _LOGGER.info(note)
    return replace(plan, metadata=table, notes=(*plan.notes, *notes))


def _features_plan(run: IndexRun, inputs: dict[str, str]) -> IndexPlan:
    store = FeatureStore.open_many(run.features)
    gallery, paths = dataset_gallery(dataset := indexed_dataset(run))
    refused = {name: why for uri in run.features for rows in read_rejected(uri).values() for name, why in rows}
    absent = store.missing(gallery)
    missing = [name for name in absent if name not in refused]
    if missing:
        raise DataError(
            f"The features {list(run.features)} lack {len(missing):,} of {len(gallery):,} gallery images, e.g. "
            f"{missing[0]!r}. Embed this data set first (cirray embed)."
        )
    digests = {f"features {number}": read_manifest(uri).digest for number, uri in enumerate(run.features)}
    if dataset is not None:
        digests["data"] = stable_id(asked_digest(dataset), *dataset.triplets)
    known: dict[str, str] = {}
    for uri in run.features:
        known |= read_contents(uri)
    changed = _changed(run, gallery, paths, known)
    if changed:
        digests["changed"] = stable_id("changed", *(part for row in sorted(changed.items()) for part in row))
    ids = [name for name in gallery if name in store and name not in changed] if gallery else store.ids
    reasons = {**{name: refused[name] for name in absent}, **dict.fromkeys(changed, _CHANGED)}
    rejected = tuple(sorted(reasons.items()))
    return IndexPlan(tuple(sorted(ids)), paths, {**inputs, **digests}, store.info.encoder_digest, rejected, known)


def _changed(run: IndexRun, ids: Sequence[str], paths: dict[str, str], known: Mapping[str, str]) -> dict[str, str]:
    """Images whose files have changed since they were embedded, with their new digests; and unreadable ones."""
    ids = [name for name in ids if name in known and name in paths]
    now = zip(ids, contents_of([paths[name] for name in ids], run.limits), strict=True)
    return {name: content for name, content in now if content and content != known[name]}


def _folder_plan(run: IndexRun, folder: str, inputs: dict[str, str]) -> IndexPlan:
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"The image folder {folder!r} does not exist (looked at {str(root.absolute())!r}).")
    found = list_pictures(root)
    ids = picture_ids([name for name, _ in found.pictures])
    paths = {image: Place(path).text() for image, (_, path) in zip(ids, found.pictures, strict=True)}
    if not paths:
        raise DataError(f"The folder {folder!r} holds no image. {' '.join(found.notes())}".rstrip())
    for note in found.notes():
        _LOGGER.info("%s: %s", folder, note)
    here = str(root.absolute())
    changes = compare(found.pictures, _seen_before(run, here), partial(_contents, limits=run.limits))
    contents = {image: row.digest for image, row in zip(ids, changes.rows, strict=True)}
    listing = [part for image in sorted(paths) for part in (image, contents[image])]
    digests = {**inputs, "images": stable_id("images", *listing), "transform": f"revision {REVISION}"}
    names = tuple(sorted(paths))
    return IndexPlan(names, paths, digests, "", (), contents, found.notes(), here, changes)


def _contents(paths: Sequence[str], limits: ImageLimits) -> list[str]:
    return contents_of([Place(path).text() for path in paths], limits)


def _seen_before(run: IndexRun, folder: str) -> list[Seen]:
    """The files that the index at `out` was made of.

    Raises ArtifactError when they lie in another folder that is still there.
    """
    if not is_complete(run.out):
        return []
    before = str(read_manifest(run.out, KIND).extra.get("originals", ""))
    if before not in ("", folder) and Path(before).is_dir() and not os.path.samefile(before, folder):
        raise ArtifactError(
            f"{run.out!r} is the index of another folder, {before!r}. Choose another --out, or delete that index if it "
            "is not needed any more."
        )
    return read_seen(run.out)


def indexed_dataset(run: IndexRun) -> CirDataset | None:
    """The data set whose gallery is indexed; None for a folder of pictures or features alone."""
    return read_dataset(run.data) if run.images is None and run.data is not None else None


def dataset_gallery(dataset: CirDataset | None) -> tuple[Sequence[str], dict[str, str]]:
    """Gallery ids and picture files of a data set, if there is one."""
    if dataset is None:
        return (), {}
    ids = dataset.gallery_ids or dataset.images.ids
    return ids, {name: dataset.images.place(name).text() for name in ids}
