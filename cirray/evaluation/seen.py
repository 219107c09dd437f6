"""What an encoder sees of a reference: stored tokens, or the picture itself where it reads that with the text."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cirray.data.benchmark import ImageTable
from cirray.data.images import open_place
from cirray.features.store import FeatureStore
from cirray.transforms import ImageTransform, stacked


class SeenPictures:
    """Stored tokens of a data set's images, and pictures of those that are references."""

    def __init__(self, features: FeatureStore, images: ImageTable, transform: ImageTransform) -> None:
        """Nothing is read yet."""
        self.info = features.info
        self._features, self._images, self._transform = features, images, transform

    def get(self, ids: Sequence[str]) -> np.ndarray:
        """As `FeatureLookup`."""
        return self._features.get(ids)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._features

    def pictures(self, ids: Sequence[str]) -> torch.Tensor:
        """Pictures of images as the transform makes them, stacked.

        Raises DataError for an unknown id, or a picture that cannot be read.
        """
        places = [self._images.place(name) for name in ids]
        opened = (open_place(place, name=place.name(name)) for place, name in zip(places, ids, strict=True))
        return torch.from_numpy(stacked([self._transform(picture) for picture in opened]))


Seen = FeatureStore | SeenPictures


def seen_by(encoder: Any, features: FeatureStore, images: ImageTable, transform: ImageTransform) -> Seen:
    """The features themselves, or with pictures for an encoder that reads these."""
    return SeenPictures(features, images, transform) if encoder.reads_pictures else features
