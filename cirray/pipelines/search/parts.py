"""Parts of an index: some encoded images as one file. A plain class, used with or without Ray."""

import io
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from cirray.core import storage
from cirray.core.environ import available_cores
from cirray.core.errors import DataError
from cirray.data.config import ImageLimits
from cirray.data.images import open_image, picture_digest, read_place
from cirray.data.pixels import thumbnail
from cirray.data.places import Place
from cirray.features.store import FeatureStore, check_tower
from cirray.image_text import load_models
from cirray.pipelines.cluster.streaming import Columns
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.search.rows import part_uri
from cirray.transforms import ImageTransform, stacked

_MOST_THREADS = 8
"""Batches in the models at once, each of which needs memory; further cores share the work of these."""


@dataclass
class Part:
    """Encoded images in the given order, and unusable ones."""

    ids: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    """What identifies each row (`cirray.pipelines.search.rows`)."""
    tokens: list[np.ndarray] = field(default_factory=list)
    """Each `[n, Q, D]`, fp16."""
    patches: list[np.ndarray] = field(default_factory=list)
    """Each `[n, P, W]`, fp16; empty when features are not kept."""
    pictures: list[bytes] = field(default_factory=list)
    """One per image; empty when pictures are not kept."""
    rejected: list[tuple[str, str]] = field(default_factory=list)
    """Id and reason."""

    def to_bytes(self) -> bytes:
        """One `.npz` file."""
        arrays = {f"tokens{n}": block for n, block in enumerate(self.tokens)}
        arrays |= {f"patches{n}": block for n, block in enumerate(self.patches)}
        sizes = [len(picture) for picture in self.pictures]
        told = {"ids": self.ids, "keys": self.keys, "rejected": self.rejected, "sizes": sizes}
        text = json.dumps({**told, "blocks": len(self.tokens)})
        arrays["text"] = np.frombuffer(text.encode(), np.uint8)
        arrays["pictures"] = np.frombuffer(b"".join(self.pictures), np.uint8)
        stream = io.BytesIO()
        np.savez(stream, **arrays)  # type: ignore[arg-type]
        return stream.getvalue()


def _joined(parts: Sequence[Part]) -> Part:
    """Batches in order as one part."""
    whole = Part()
    for part in parts:
        for name in (item.name for item in fields(Part)):
            getattr(whole, name).extend(getattr(part, name))
    return whole


@dataclass(frozen=True)
class Loaded:
    """Readable images (ids and keys, patch tokens in fp16 or pixels in uint8, pictures), and unreadable ones."""

    ids: list[str]
    keys: list[str]
    patches_BPW: np.ndarray | None
    pixels_BHWC: np.ndarray | None
    pictures: list[bytes]
    rejected: list[tuple[str, str]]


class Source(Protocol):
    """Source of an index's images."""

    def load(self, ids: Sequence[str], places: Sequence[str]) -> Loaded:
        """Read some images (places as `Place.text`, or empty); unusable ones are values, not exceptions."""


def _opened(
    ids: Sequence[str], places: Sequence[str], limits: ImageLimits, rejected: list[tuple[str, str]]
) -> Iterator[tuple[str, str, Image.Image]]:
    """Ids, digests and pixels of readable pictures, one at a time; others are added to `rejected` with the reason."""
    for name, text in zip(ids, places, strict=True):
        try:
            place = Place.parse(text)
            data = read_place(place, limits, place.name(name))
            image = open_image(data, limits, place.name(name), place.box)
        except DataError as error:
            rejected.append((name, str(error)))
        else:
            yield name, picture_digest(data), image


class FolderSource:
    """Pictures of a folder, decoded once for model and thumbnail."""

    def __init__(self, transform: ImageTransform, thumbnail_size: int, limits: ImageLimits) -> None:
        """Remember what a picture is turned into."""
        self._transform, self._size, self._limits = transform, thumbnail_size, limits

    def load(self, ids: Sequence[str], places: Sequence[str]) -> Loaded:
        """See `Source`."""
        kept, keys, pixels, pictures = [], [], [], []
        rejected: list[tuple[str, str]] = []
        for name, digest, image in _opened(ids, places, self._limits, rejected):
            kept.append(name)
            keys.append(digest)
            pixels.append(self._transform(image))
            pictures += [thumbnail(image, self._size)] if self._size else []
        return Loaded(kept, keys, None, stacked(pixels) if pixels else None, pictures, rejected)


class FeatureSource:
    """Stored vision features; pictures come from the data set's files, if any."""

    def __init__(self, store: FeatureStore, thumbnail_size: int, limits: ImageLimits) -> None:
        """Remember where the features are."""
        self._store, self._size, self._limits = store, thumbnail_size, limits

    def load(self, ids: Sequence[str], places: Sequence[str]) -> Loaded:
        """See `Source`; without places there are no pictures."""
        if not self._size or not all(places):
            return Loaded(list(ids), list(ids), self._store.get(list(ids)), None, [], [])
        kept, pictures = [], []
        rejected: list[tuple[str, str]] = []
        for name, _, image in _opened(ids, places, self._limits, rejected):
            kept.append(name)
            pictures.append(thumbnail(image, self._size))
        return Loaded(kept, kept, self._store.get(kept) if kept else None, None, pictures, rejected)


class PartEncoder:
    """Encodes images and writes them as the parts of an index; loads its models once."""

    def __init__(self, run: IndexRun, vision_digest: str, count: int, work_uri: str, first: int = 0) -> None:
        """Load the checkpoint and open the source.

        Args:
            run: the configuration.
            vision_digest: the tower that made the stored features, if they are read.
            count: images of the whole gallery, which decides whether their patch tokens are kept.
            work_uri: where the stage writes.
            first: number of the first part's file.

        Raises IndexMismatchError when the features come from another vision tower than the checkpoint's.
        """
        self._run, self._work_uri, self.first = run, work_uri, first
        self._gate = None if torch.device(run.device).type == "cpu" else threading.Lock()
        self.encoder, self.vision, self.transform = load_models(run.checkpoint, run.device)
        feature_bytes = count * self.vision.num_tokens * self.vision.width * 2
        self.keeps_patches = not run.living and feature_bytes <= run.reference_features_gb * 1e9
        if run.images is not None:
            self._source: Source = FolderSource(self.transform, run.thumbnail_size, run.limits)
        else:
            check_tower(run.features, vision_digest, run.checkpoint, self.vision.digest)
            self._source = FeatureSource(
                FeatureStore.open_many(run.features, verified=True), run.thumbnail_size, run.limits
            )

    def __call__(self, columns: Columns) -> dict[str, int]:
        """Encode and write one part.

        Args:
            columns: `part`, `image_id`, `place` (`Place.text`, or empty).

        Returns: `rejected` images, and how many the models were `asked` for.
        """
        part = self.encode(columns["image_id"].tolist(), columns["place"].tolist())
        storage.write_bytes(part_uri(self._work_uri, self.first + int(columns["part"][0])), part.to_bytes())
        return {"rejected": len(part.rejected), "asked": len(part.ids)}

    def encode(self, ids: Sequence[str], places: Sequence[str]) -> Part:
        """Encode some images in batches, in threads that each decode a batch and then take it through the models."""
        cuts = [slice(start, start + self._run.batch) for start in range(0, len(ids), self._run.batch)]
        before = torch.get_num_threads()
        threads, inner = self._threads()
        with ThreadPoolExecutor(threads, "cirray-encode", torch.set_num_threads, (inner,)) as pool:
            try:
                return _joined(list(pool.map(lambda cut: self._encoded(ids[cut], places[cut]), cuts)))
            finally:
                pool.shutdown(cancel_futures=True)
                torch.set_num_threads(before)

    def _threads(self) -> tuple[int, int]:
        """Threads, and cores for each; a device other than the CPU works for one of them while others decode."""
        cores = self._run.threads or (self._run.pool.threads if self._run.pool else available_cores())
        threads = min(cores, _MOST_THREADS)
        return (threads, cores // threads) if self._gate is None else (max(2, threads), 1)

    def _encoded(self, ids: Sequence[str], places: Sequence[str]) -> Part:
        """One batch."""
        loaded = self._source.load(ids, places)
        if not loaded.ids:
            return Part(rejected=loaded.rejected)
        with self._gate or nullcontext():
            patches_BPW, tokens_BQD = self._vectors(loaded)
        patches = [patches_BPW] if self.keeps_patches else []
        return Part(loaded.ids, loaded.keys, [tokens_BQD], patches, loaded.pictures, loaded.rejected)

    @torch.inference_mode()
    def _vectors(self, loaded: Loaded) -> tuple[np.ndarray, np.ndarray]:
        """Patch tokens and vectors in fp16, as the feature store and the index keep them."""
        patches_BPW, device = loaded.patches_BPW, self._run.device
        if patches_BPW is None:
            assert loaded.pixels_BHWC is not None  # a source gives one of the two
            pixels_BHWC = torch.from_numpy(self._filled(loaded.pixels_BHWC)).to(device)
            patches_BPW = self.vision(pixels_BHWC)[: len(loaded.ids)].to(torch.float16).cpu().numpy()
        whole_BPW = torch.from_numpy(self._filled(patches_BPW)).to(device).float()
        tokens_BQD = self.encoder.encode_gallery(whole_BPW)[: len(loaded.ids)]
        return patches_BPW, tokens_BQD.float().cpu().numpy().astype(np.float16)

    def _filled(self, rows: np.ndarray) -> np.ndarray:
        """Rows repeated to a whole batch: sums in another shape may round otherwise, and a picture that is added later
        must get the vector that it would have had at first. Packed pictures are of many shapes anyway, and their models
        large.
        """
        return (
            rows
            if len(rows) == self._run.batch or rows.ndim == 2
            else np.resize(rows, (self._run.batch, *rows.shape[1:]))
        )
