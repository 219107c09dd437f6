"""Training without a features artifact: images are read and encoded when a batch asks for them. No ray.

Slower than cached features, as the frozen tower runs for every use of an image, but needs no disk: for trials, for
    images that are used once, or if the cache would not fit.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import torch

from cirray.core.errors import DataError
from cirray.data.config import ImageLimits
from cirray.features.store import FeatureInfo, FeatureStore
from cirray.models.towers.hf_blip2 import VisionTower
from cirray.models.towers.places import open_tower
from cirray.pipelines.data.datasets import ImageList, each_content, list_images
from cirray.pipelines.features.actors import decode_images
from cirray.pipelines.training.config import TrainRun
from cirray.transforms import stacked
from cirray.types import stable_id, stable_id_of

_PARTS = ("labelled", "pool", "gallery")
_DECODED_TOGETHER = 8


class LiveFeatures:
    """In place of a `FeatureStore`: image id -> patch tokens, fp16, computed by the frozen tower when asked for.

    Tokens are rounded to fp16 as in the store, so losses equal those of cached features, up to one unit in fp16's last
    place where another batch size sums in another order.
    """

    def __init__(
        self, tower: VisionTower, images: Sequence[ImageList], batch: int = 64, threads: int = 4,
        device: str | torch.device = "cpu",
    ) -> None:  # fmt: skip
        """Take the tower and the images' places; nothing is read yet. For an id in several lists the first counts."""
        self._tower, self._device = tower.to(device), device
        self._places: dict[str, str] = {}
        for known in reversed(images):
            self._places |= dict(zip(known.ids, known.places, strict=True))
        self._batch, self._pool = batch, ThreadPoolExecutor(threads)
        self._transform, self._limits = tower.transform.to_dict(), ImageLimits().to_dict()
        shape = (tower.num_tokens, tower.width)
        self.info = FeatureInfo(tower.digest, stable_id("live", *sorted(map(str, self._transform.items()))), shape)

    @property
    def shape(self) -> tuple[int, int]:
        """(P, D): tokens of an image and their width."""
        return self.info.shape

    def get(self, ids: Sequence[str]) -> np.ndarray:
        """Tokens of images, fp16 [n, P, D], in the order of `ids`; an image asked for twice is encoded once.

        Raises DataError for an unknown id, or an image that cannot be read.
        """
        distinct = list(dict.fromkeys(ids))
        absent = self.missing(distinct)
        if absent:
            count = len(self._places)
            raise DataError(f"Image {absent[0]!r} has no file among the {count} images of `data` and `images`.")
        made = np.empty((len(distinct), *self.shape), dtype=np.float16)
        for begin in range(0, len(distinct), self._batch):
            made[begin : begin + self._batch] = self._encode(distinct[begin : begin + self._batch])
        row = {image: at for at, image in enumerate(distinct)}
        return made[[row[image] for image in ids]] if len(distinct) < len(ids) else made

    def missing(self, ids: Sequence[str]) -> list[str]:
        """Those of `ids` that have no file, in order."""
        return [image for image in ids if image not in self._places]

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._places

    def __len__(self) -> int:
        return len(self._places)

    @torch.inference_mode()
    def _encode(self, ids: Sequence[str]) -> np.ndarray:
        chunks = [ids[begin : begin + _DECODED_TOGETHER] for begin in range(0, len(ids), _DECODED_TOGETHER)]
        pixels = [row for rows in self._pool.map(self._decode, chunks) for row in rows]
        return self._tower(torch.from_numpy(stacked(pixels)).to(self._device)).half().cpu().numpy()

    def _decode(self, ids: Sequence[str]) -> np.ndarray:
        names, places = np.array(ids, dtype=object), np.array([self._places[image] for image in ids], dtype=object)
        decoded = decode_images({"image_id": names, "place": places}, self._transform, self._limits)
        problem = next((str(reason) for reason in decoded["error"] if reason), "")
        if problem:
            raise DataError(f"{problem} Remove its triplets, or embed the images first, which lists all such images.")
        return np.asarray(decoded["pixels"])


Features = FeatureStore | LiveFeatures


def live_features(run: TrainRun, device: str | torch.device = "cpu") -> LiveFeatures:
    """The images of a run that names no features, through its frozen tower.

    Raises ArtifactError or DataError as finding tower and images.
    """
    return LiveFeatures(open_tower(run.towers), live_images(run), device=device)


def live_images(run: TrainRun) -> list[ImageList]:
    """Every image of the run's data sets. Raises DataError: for a data set without images."""
    named = (*(() if run.data is None else (run.data,)), *run.images)
    return [list_images(data, _PARTS) for data in named]


def live_digests(run: TrainRun) -> dict[str, str]:
    """Name -> digest of the inputs in place of features: tower, and images with their contents."""
    tower = open_tower(run.towers)
    lists = {
        f"images {at}": stable_id_of(chain((item.digest,), each_content(item.places, ImageLimits())))
        for at, item in enumerate(live_images(run))
    }
    return {**lists, "towers": tower.digest}
