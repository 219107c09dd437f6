"""Opens what is searched: an index, or a gallery that is written to."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cirray.catalogue.follower import Follower
from cirray.core import storage
from cirray.core.artifacts import read_manifest
from cirray.core.errors import RemadeError, damage_told
from cirray.index.config import IndexBackend
from cirray.index.shards import WHOLE, Shard
from cirray.index.store import LIVING, GalleryIndex, IndexMeta, check_encoder, open_index, read_searchable
from cirray.index.texts import TEXTS, Texts, parsed_texts

DESCRIPTION = "gallery"
"""Where a gallery's manifest says what its vectors are (`extra`)."""


@dataclass(frozen=True)
class Description:
    """What a gallery's manifest says."""

    meta: IndexMeta
    shape: tuple[int, int]
    """Vectors of an image, and their width (Q, D)."""
    backend: IndexBackend
    thumbnail_size: int

    def extra(self) -> dict[str, Any]:
        """For the manifest's `extra`."""
        told = {"meta": asdict(self.meta), "shape": list(self.shape), "backend": self.backend.to_dict()}
        made_by = {"encoder_digest": self.meta.encoder_digest, "vision_digest": self.meta.vision_digest}
        return {DESCRIPTION: {**told, "thumbnail_size": self.thumbnail_size}, **made_by}


def describe(uri: str | Path) -> Description:
    """The description of a gallery.

    Raises:
        ArtifactError: it is no gallery, or its manifest is damaged.
    """
    manifest = read_manifest(uri, LIVING)
    with damage_told(uri, "Make the gallery again."):
        told = manifest.extra[DESCRIPTION]
        tokens, width = (int(size) for size in told["shape"])
        backend = IndexBackend.model_validate(told["backend"])
        return Description(IndexMeta(**told["meta"]), (tokens, width), backend, int(told["thumbnail_size"]))


def open_gallery(
    uri: str | Path, encoder_digest: str | tuple[str, ...] | None, verify: bool = True, vision_digest: str = "",
    shard: Shard = WHOLE,
) -> GalleryIndex | Follower:  # fmt: skip
    """Open an index, or a gallery with what follows it.

    Args:
        uri: the artifact.
        encoder_digest: digest of the encoder that will query it, or its `index_digests`; None skips that check.
        verify: compare an index's files with their digests (a gallery's table does that itself).
        vision_digest: digest of the encoder's vision tower.
        shard: which of its images.

    Raises:
        ArtifactError: missing, incomplete or damaged.
        ConfigError: for a backend of a plug-in that is not here, or without LanceDB.
        IndexMismatchError: when another encoder made the vectors.
        StoreError: when the table cannot be read.
    """
    manifest = read_searchable(uri)
    if manifest.kind != LIVING:
        return open_index(uri, encoder_digest, verify, vision_digest, shard)
    told = describe(uri)
    if encoder_digest is not None:
        check_encoder(told.meta.encoder_digest, encoder_digest, str(uri), (told.meta.vision_digest, vision_digest))
    examples = tuple((str(name), str(text)) for name, text in manifest.extra.get("examples", ()))
    follower = Follower(
        str(uri), told.meta, told.shape, told.backend, manifest.digest[:16], shard=shard, texts=_texts(uri),
        examples=examples,
    )  # fmt: skip
    if read_searchable(uri) != manifest:
        raise RemadeError(f"The gallery {str(uri)!r} was made again while it was opened. Open it anew.")
    return follower


def _texts(uri: str | Path) -> Texts:
    """The data set's own texts that a gallery keeps."""
    place = storage.join(uri, TEXTS)
    return parsed_texts(storage.read_bytes(place)) if storage.exists(place) else {}
