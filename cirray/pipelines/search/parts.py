"""Parts of an index: some encoded images as one file. A plain class, used with or without Ray."""

import io
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from cirray.core import storage
from cirray.core.errors import DataError
from cirray.data.benchmark import CirDataset
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

        Raises:
            IndexMismatchError: when the features come from another vision tower than the checkpoint's.
        """
        self._run, self._work_uri, self.first = run, work_uri, first
        self.encoder, self.vision, self.transform = load_models(run.checkpoint, run.device)
        feature_bytes = count * self.vision.num_tokens * self.vision.width * 2
        self.keeps_patches = feature_bytes <= run.reference_features_gb * 1e9
        if run.images is not None:
            self._source: Source = FolderSource(self.transform, run.thumbnail_size, run.limits)
        else:
            check_tower(run.features, vision_digest, run.checkpoint, self.vision.digest)
            self._source = FeatureSource(FeatureStore.open_many(run.features), run.thumbnail_size, run.limits)

    def __call__(self, columns: Columns) -> dict[str, int]:
        """Encode and write one part.

        Args:
            columns: `part`, `image_id`, `place` (`Place.text`, or empty).

        Returns:
            `rejected` images.
        """
        part = self.encode(columns["image_id"].tolist(), columns["place"].tolist())
        storage.write_bytes(part_uri(self._work_uri, self.first + int(columns["part"][0])), part.to_bytes())
        return {"rejected": len(part.rejected)}

    def encode(self, ids: Sequence[str], places: Sequence[str]) -> Part:
        """Encode some images in batches."""
        part = Part()
        for loaded in self._loaded(ids, places):
            part.rejected += loaded.rejected
            if loaded.ids:
                self._add(part, loaded)
        return part

    def _loaded(self, ids: Sequence[str], places: Sequence[str]) -> Iterator[Loaded]:
        """Batches in order; one is decoded while the model encodes the one before it."""
        cuts = [slice(start, start + self._run.batch) for start in range(0, len(ids), self._run.batch)]
        with ThreadPoolExecutor(1, "cirray-decode") as pool:
            following = pool.submit(self._source.load, ids[cuts[0]], places[cuts[0]]) if cuts else None
            for cut in [*cuts[1:], None]:
                if following is None:
                    return
                loaded = following.result()
                following = pool.submit(self._source.load, ids[cut], places[cut]) if cut else None
                yield loaded

    @torch.inference_mode()
    def _add(self, part: Part, loaded: Loaded) -> None:
        patches_BPW, count = self._patches(loaded), len(loaded.ids)
        whole = torch.from_numpy(self._filled(patches_BPW)).to(self._run.device).float()
        tokens_BQD = self.encoder.encode_gallery(whole)[:count]
        part.ids += loaded.ids
        part.keys += loaded.keys
        part.tokens.append(tokens_BQD.float().cpu().numpy().astype(np.float16))
        part.patches += [patches_BPW] if self.keeps_patches else []
        part.pictures += loaded.pictures

    def _patches(self, loaded: Loaded) -> np.ndarray:
        """Patch tokens in fp16, as the feature store keeps them."""
        if loaded.patches_BPW is not None:
            return loaded.patches_BPW
        assert loaded.pixels_BHWC is not None  # a source gives one of the two
        pixels = torch.from_numpy(self._filled(loaded.pixels_BHWC)).to(self._run.device)
        return self.vision(pixels)[: len(loaded.ids)].to(torch.float16).cpu().numpy()

    def _filled(self, rows: np.ndarray) -> np.ndarray:
        """Rows repeated to a whole batch: sums in another shape may round otherwise, and a picture that is added later
        must get the vector that it would have had at first.
        """
        return rows if len(rows) == self._run.batch else np.resize(rows, (self._run.batch, *rows.shape[1:]))


def dataset_gallery(dataset: CirDataset | None) -> tuple[tuple[str, ...], dict[str, str]]:
    """Gallery ids and picture files of a data set, if there is one."""
    if dataset is None:
        return (), {}
    ids = dataset.gallery_ids or dataset.images.ids
    return ids, {name: dataset.images.place(name).text() for name in ids}
