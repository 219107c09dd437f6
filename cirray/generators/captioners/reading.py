"""Base of the embedded world's captioners: a trained generator's Q-Former reads one image's patch tokens."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch

from cirray.core.artifacts import localize
from cirray.core.contents import directory_digest
from cirray.core.errors import DataError
from cirray.features.store import FeatureStore
from cirray.generators.captioners.base import CaptionerSetup, Picture
from cirray.generators.captioners.config import ReadingConfig
from cirray.generators.store import load_model


class ReadingCaptioner(ABC):
    """Loads a generator and reads images in batches; subclasses turn the soft tokens into words."""

    def __init__(self, settings: ReadingConfig, setup: CaptionerSetup) -> None:
        """Load a generator artifact and open the features. Raises ArtifactError: when there are none."""
        folder = localize(settings.source, "generator")
        self._model = load_model(folder).to(setup.device).eval()
        self._features, self._batch = FeatureStore.open_many(settings.features), setup.batch
        self._generator_digest = directory_digest(folder)

    def content(self, picture: Picture) -> bytes:
        """The image's patch tokens. Raises DataError: for an image without features."""
        if picture.image_id not in self._features:
            raise DataError(f"Image {picture.image_id!r} has no features. Embed it first.")
        return np.ascontiguousarray(self._features.get([picture.image_id])).tobytes()

    @torch.inference_mode()
    def caption(self, pictures: Sequence[Picture]) -> list[str]:
        """One text per image; an empty one is a failure."""
        texts: list[str] = []
        for begin in range(0, len(pictures), self._batch):
            ids = [picture.image_id for picture in pictures[begin : begin + self._batch]]
            weight = self._model.projection.weight
            patches_BPD = torch.from_numpy(self._features.get(ids)).to(weight.device, weight.dtype)
            texts += self.describe(self._model.read_image(patches_BPD))
        return texts

    @abstractmethod
    def describe(self, soft_BQE: torch.Tensor) -> list[str]:
        """A text for each image's soft tokens."""
