"""The index artifact: write, check, open.

Files: `tokens.npy` (fp16 [N, Q, D], memory-mapped), `ids.json` (ascending), `meta.json`, those of the backend
(`index.faiss`), and optionally `patches.npy` (vision features of the gallery, fp16 [N, P, W]), the packed pictures, the
names of their original files, the data set's own texts and `metadata.parquet`. The digest of every file's whole content
is in the manifest and is checked before any of them is parsed: FAISS must never read a damaged file.
"""

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cirray.core import storage
from cirray.core.arrays import read_array
from cirray.core.artifacts import Manifest, localize, read_manifest
from cirray.core.errors import ArtifactError, ConfigError, DataError, IndexMismatchError, damage_told
from cirray.core.log import get_logger
from cirray.core.texts import is_whole
from cirray.index.config import INDEXES, IndexBackend
from cirray.index.exact import ExactIndex
from cirray.index.metadata import Columns, Counted, open_metadata, write_metadata
from cirray.index.originals import Original, OriginalFiles, open_originals, write_originals
from cirray.index.pictures import Pictures, open_pictures, write_pictures
from cirray.index.protocol import Absent, Page, Searched, Shown, VectorIndex
from cirray.index.shards import WHOLE, Shard
from cirray.index.texts import Texts, open_texts, write_texts

KIND, LIVING = "index", "gallery"
"""Kinds of artifacts that are searched: a frozen index, and a gallery that is written to (`cirray.catalogue`)."""
_LOGGER = get_logger("index")
TOKENS, IDS, META, PATCHES = "tokens.npy", "ids.json", "meta.json", "patches.npy"


def read_searchable(uri: str | Path) -> Manifest:
    """Manifest of an index or a living gallery. Raises ArtifactError: missing, incomplete or of another kind."""
    manifest = read_manifest(uri)
    return manifest if manifest.kind == LIVING else read_manifest(uri, KIND)


_COMPARED = 10_000
"""Most ids among which one like an unknown one is looked for."""


class UnknownImageError(DataError):
    """An id that is not in the gallery."""


@dataclass(frozen=True)
class IndexMeta:
    """Origin of an index's vectors: digests of the models' weights, and the `similarity` they are scored by."""

    encoder_digest: str
    vision_digest: str = ""
    similarity: str = "max_tokens"


@dataclass(frozen=True)
class GalleryIndex:
    """An opened index: the search, the pictures and, where kept, the vision features of its gallery."""

    search_index: VectorIndex
    meta: IndexMeta
    digest: str
    pictures: Pictures | None = None
    patches_NPW: np.ndarray | None = None
    texts: Texts = field(default_factory=dict)
    """The data set's own texts by image id; pictures without a text are left out."""
    examples: tuple[tuple[str, str], ...] = ()
    """Queries (reference id, text) whose first answer was right when the index was made, the clearest first."""
    originals: OriginalFiles | None = None
    """The files that the pictures were made of."""
    facts: pa.Table | None = None
    """Metadata in row order, as the index was written; see `metadata`."""
    at_N: np.ndarray | None = None
    """Where its images lie in `pictures`, `patches_NPW` and `originals`; None: in order, and there are no others."""

    @property
    def metadata(self) -> pa.Table | None:
        """Any columns about the images, in row order; None for a gallery without."""
        return self.facts

    @cached_property
    def columns(self) -> Columns:
        """What filters and facets see: the metadata, and the ids."""
        return Columns(self.ids, self.metadata)

    @property
    def ids(self) -> tuple[str, ...]:
        """Gallery ids, ascending."""
        return self.search_index.ids

    def __len__(self) -> int:
        return len(self.ids)

    def __bool__(self) -> bool:
        return True  # also without an image

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._rows

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.ids)}

    def row(self, image_id: str) -> int:
        """Row of one id. Raises UnknownImageError for an id that is not in the gallery."""
        if image_id not in self:
            raise self.unknown(image_id)
        return self._rows[image_id]

    def unknown(self, image_id: str) -> UnknownImageError:
        """The error for an id that is not here, with one that may be meant where the ids are few enough to compare."""
        ids = self.ids if 0 < len(self) <= _COMPARED else ()
        close = get_close_matches(image_id[:200], ids, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else f" The first is {ids[0]!r}." if ids else ""
        return UnknownImageError(f"The gallery has no image {image_id[:80]!r}. It holds {len(self):,}.{hint}")

    def tag(self, image_id: str) -> str:
        """Text that changes with the picture of an id. Raises UnknownImageError for an unknown id."""
        return f"{self.digest[:16]}-{self._stored(image_id)}"

    def check(self, image_id: str) -> None:
        """Raises UnknownImageError for an id that is not in the gallery."""
        self.row(image_id)

    def picture(self, image_id: str) -> bytes:
        """Encoded picture of one gallery image; empty when the index holds none.

        Raises UnknownImageError for an unknown id.
        """
        at = self._stored(image_id)
        return self.pictures.read(at) if self.pictures else b""

    @property
    def keeps_pictures(self) -> bool:
        """Whether there are pictures of its images."""
        return self.pictures is not None

    def original(self, image_id: str) -> tuple[Path, str] | None:
        """Path and digest of the file that an image was made of; None where it is not known.

        Raises UnknownImageError for an unknown id.
        """
        at = self._stored(image_id)
        return self.originals.find(at) if self.originals else None

    @property
    def keeps_patches(self) -> bool:
        """Whether there are vision features of its images."""
        return self.patches_NPW is not None

    def patches(self, ids: Sequence[str]) -> np.ndarray:
        """Kept vision features of some images [n, P, W]. Raises UnknownImageError for an unknown id."""
        assert self.patches_NPW is not None
        return np.asarray(self.patches_NPW[[self._stored(name) for name in ids]])

    def texts_of(self, image_id: str) -> tuple[str, ...]:
        """The data set's own texts about an image. Raises UnknownImageError for an unknown id."""
        self.check(image_id)
        return self.texts.get(image_id, ())

    def page(self, offset: int, limit: int) -> Page:
        """Some ids, in ascending order."""
        return Page(self.ids[offset : offset + limit])

    is_remote = False
    """Whether its questions go to other processes, and are asked outside of the event loop."""

    def before(self, image_id: str) -> int:
        """How many ids come before one, which need not be there."""
        return bisect_left(self.ids, image_id)

    def shown(self, ids: Sequence[str], names: Sequence[str] = ()) -> "Sequence[Shown | Absent]":
        """Of some images the size of the picture, and columns of metadata.

        Raises UnknownImageError for an unknown id.
        """
        rows = [self.row(name) for name in ids]
        sizes = [self.pictures.size(self._at(row)) if self.pictures else None for row in rows]
        return [Shown(*pair) for pair in zip(sizes, self.columns.rows(rows, names), strict=True)]

    def allowed(self, chosen: str) -> Any:
        """The images that pass a filter, as `search` takes them. Raises DataError for a filter that does not fit."""
        return self.columns.mask(chosen)

    def facets(self, chosen: str | None = None) -> Counted:
        """How many images pass a filter, and what their columns hold.

        Raises DataError for a filter that does not fit.
        """
        mask_N = None if chosen is None else self.columns.mask(chosen)
        return Counted(len(self) if mask_N is None else int(mask_N.sum()), self.columns.facets(mask_N))

    def search(self, queries_BD: np.ndarray, k: int, allowed: Any = None) -> Searched:
        """The k best images of each query, among those that are `allowed`; see `VectorIndex.search`."""
        return Searched(*self.search_index.search(queries_BD, k, allowed))

    def _at(self, row: int) -> int:
        return row if self.at_N is None else int(self.at_N[row])

    def _stored(self, image_id: str) -> int:
        """Where an image lies in the files."""
        return self._at(self.row(image_id))


def write_index(
    folder: Path, ids: Sequence[str], meta: IndexMeta, backend: IndexBackend, pictures: Iterable[bytes] | None = None,
    texts: Texts | None = None, originals: Sequence[Original] = (), metadata: pa.Table | None = None,
) -> dict[str, str]:  # fmt: skip
    """Finish an index in a folder that already holds `tokens.npy` (and perhaps `patches.npy`).

    Args:
        folder: the stage's local folder.
        ids: one per row of the tokens, ascending, without doubles.
        meta: what made the vectors.
        backend: what will search it.
        pictures: encoded pictures in row order, or None.
        texts: the data set's own texts by id, where it has some.
        originals: files of the pictures in row order, where there are some; the caller notes their folder in the
            manifest's `extra["originals"]`.
        metadata: any columns in row order, where there are some.

    Returns: File name -> digest, for the manifest's `extra["files"]`.

    Raises DataError for ids that are not ascending and unique, an empty gallery, or vectors that do not fit them, and
    ConfigError for settings that the backend refuses.
    """
    tokens_NQD = read_array(folder / TOKENS)
    _check_rows(ids, tokens_NQD)
    names = [TOKENS, IDS, META] + ([PATCHES] if (folder / PATCHES).exists() else [])
    (folder / IDS).write_text(json.dumps(list(ids)), encoding="utf-8")
    names += INDEXES.get(backend.kind)(backend.settings).write(folder, tokens_NQD)
    if pictures is not None:
        names += write_pictures(folder, pictures)
    names += write_texts(folder, texts or {}) + write_originals(folder, originals) + write_metadata(folder, metadata)
    description = {"meta": asdict(meta), "backend": backend.to_dict(), "shape": list(tokens_NQD.shape)}
    (folder / META).write_text(json.dumps(description, indent=2, sort_keys=True), encoding="utf-8")
    return {name: whole_digest(folder / name) for name in sorted(names)}


def open_index(
    uri: str | Path, encoder_digest: str | Sequence[str] | None = None, verify: bool = True, vision_digest: str = "",
    shard: Shard = WHOLE,
) -> GalleryIndex:  # fmt: skip
    """Open an index artifact.

    Args:
        uri: the artifact.
        encoder_digest: digest of the encoder that will query it, or its `index_digests` (of the target side first);
            None skips that check (e.g. to look at ids only).
        verify: compare every file with its digest first (reads all bytes once).
        vision_digest: digest of the encoder's vision tower.
        shard: which of its images; of a part the vectors are in memory, and the search over them is built anew. The
            parts of an index in a folder compare some of its files each, and all of them together.

    Raises ArtifactError: missing, incomplete or damaged, naming the file; ConfigError for a backend of a plug-in that
    is not here; IndexMismatchError when another encoder made the vectors.
    """
    folder, manifest = localize(uri, KIND), read_manifest(uri, KIND)
    if verify:
        check_files(folder, manifest, str(uri), shard if storage.is_local(uri) else WHOLE)
    with damage_told(uri, "Build the index again."):
        return _opened(str(uri), folder, manifest, encoder_digest, vision_digest, shard)


def _opened(
    uri: str, folder: Path, manifest: Manifest, encoder_digest: str | Sequence[str] | None, vision_digest: str,
    shard: Shard,
) -> GalleryIndex:  # fmt: skip
    names = list(manifest.extra.get("files", {}))
    description = json.loads((folder / META).read_text(encoding="utf-8"))
    meta, backend = IndexMeta(**description["meta"]), IndexBackend.model_validate(description["backend"])
    if encoder_digest is not None:
        check_encoder(meta.encoder_digest, encoder_digest, uri, (meta.vision_digest, vision_digest))
    ids = tuple(json.loads((folder / IDS).read_text(encoding="utf-8")))
    tokens_NQD = read_array(folder / TOKENS)
    patches = read_array(folder / PATCHES) if PATCHES in names else None
    if len(tokens_NQD) != len(ids) or list(tokens_NQD.shape) != description["shape"]:
        raise ValueError(f"{TOKENS} holds {tokens_NQD.shape}, {IDS} {len(ids)} ids, {META} {description['shape']}")
    examples = tuple((str(name), str(text)) for name, text in manifest.extra.get("examples", ()))
    facts, at_N = open_metadata(folder, names), None
    if shard.is_whole:
        search = INDEXES.get(backend.kind)(backend.settings).open(folder, ids, tokens_NQD)
    else:
        at_N = shard.rows(ids)
        search = built(backend, [ids[row] for row in at_N], tokens_NQD[at_N])
        facts = None if facts is None else facts.take(pa.array(at_N))
    return GalleryIndex(
        search, meta, manifest.digest, open_pictures(folder, names), patches, open_texts(folder, names), examples,
        open_originals(folder, names, str(manifest.extra.get("originals", ""))), facts, at_N,
    )  # fmt: skip


def open_vectors(
    uri: str | Path, encoder_digest: str | Sequence[str], vision_digest: str = ""
) -> tuple[Path, tuple[str, ...]]:
    """The gallery vectors of an index artifact without its search: file of fp16 [N, Q, D], and the ids of its rows.

    Raises ArtifactError: missing or incomplete; IndexMismatchError when another encoder made the vectors.
    """
    folder = localize(uri, KIND)
    with damage_told(uri, "Build the index again."):
        meta = json.loads((folder / META).read_text(encoding="utf-8"))["meta"]
        check_encoder(meta["encoder_digest"], encoder_digest, str(uri), (meta.get("vision_digest", ""), vision_digest))
        return folder / TOKENS, tuple(json.loads((folder / IDS).read_text(encoding="utf-8")))


def check_encoder(
    built_by: str, encoder_digest: str | Sequence[str], uri: str, towers: tuple[str, str] = ("", "")
) -> None:
    """Refuse an index of another encoder; a new query side over the same target side is accepted.

    Args:
        built_by: digest of the encoder, or of its target side, that made the index.
        encoder_digest: digest of the encoder that is to query it, or its `index_digests`, its own one last.
        uri: the index, for the sentence.
        towers: digests of the vision towers of the index and of the encoder; they must agree where the two encoders
            agree in their target side alone.

    Raises IndexMismatchError naming both digests and the remedy.
    """
    digests = (encoder_digest,) if isinstance(encoder_digest, str) else tuple(encoder_digest)
    same_tower = towers[0] == towers[1] != ""
    if built_by != digests[-1] and not (built_by in digests and same_tower):
        raise IndexMismatchError(
            f"The index {uri!r} was built by encoder {built_by[:12]}, the checkpoint is encoder "
            f"{digests[-1][:12]}: their vectors cannot be compared. Build the index again with this checkpoint "
            "(cirray index), or load the checkpoint it was built with."
        )


def check_files(folder: Path, manifest: Manifest, uri: str, shard: Shard = WHOLE) -> None:
    """Compare the files of an index with the digests in its manifest; of a shard its share of them, by size.

    Raises ArtifactError naming the first file that is missing or differs.
    """
    files: Mapping[str, Any] = manifest.extra.get("files", {})
    for name in {TOKENS, IDS, META} - set(files):
        raise ArtifactError(f"The manifest of the index {uri!r} does not list {name!r}. Build the index again.")
    lost = next((name for name in files if not (folder / name).is_file()), None)
    if lost is not None:
        raise ArtifactError(f"The index {uri!r} has lost its file {lost!r}. Build the index again.")
    largest = sorted(files, key=lambda name: (-(folder / name).stat().st_size, name))
    for name in largest[shard.number :: shard.of]:
        if whole_digest(folder / name) != files[name]:
            raise ArtifactError(
                f"The file {name!r} of the index {uri!r} is damaged: its content is not what was written. "
                "Build the index again or restore the file."
            )


def whole_digest(path: Path) -> str:
    """Digest of a local file's whole content."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _check_rows(ids: Sequence[str], tokens_NQD: np.ndarray) -> None:
    if len(ids) == 0:
        raise DataError("The gallery is empty: no image was left to index.")
    if tokens_NQD.ndim != 3 or len(tokens_NQD) != len(ids):
        raise DataError(f"{len(ids):,} ids do not fit vectors of shape {tokens_NQD.shape}; [N, Q, D] is needed.")
    odd = next((name for name in ids if not is_whole(name)), None)
    if odd is not None:
        raise DataError(f"The gallery id {odd!r} is no UTF-8 text, and no answer could name it; rename that image.")
    for before, after in zip(ids, ids[1:], strict=False):
        if not before < after:
            what = "appears twice" if before == after else f"stands after {before!r}"
            raise DataError(f"The gallery id {after!r} {what}; ids must be unique and ascending.")


def built(backend: IndexBackend, ids: Sequence[str], tokens_NQD: np.ndarray) -> VectorIndex:
    """The search over vectors in memory; the usual exact one where there are too few to train the backend's."""
    if not len(ids):
        return ExactIndex(ids, tokens_NQD)
    try:
        return INDEXES.get(backend.kind)(backend.settings).build(ids, tokens_NQD)
    except ConfigError as error:
        _LOGGER.warning("%s The gallery is searched exactly.", error)
        usual = IndexBackend()
        return INDEXES.get(usual.kind)(usual.settings).build(ids, tokens_NQD)
