"""The embedded world's own captioner: a generator's Q-Former reads one image, its frozen language model describes it.

The Q-Former's soft tokens were aligned with the captions of the labelled part (`cirray.training.generation`); the
language model can describe from its text-only pretraining. A generator trained with `training.steps=0` has seen
captions alone.
"""

from collections.abc import Sequence

import numpy as np
import torch

from cirray.core.artifacts import directory_digest, localize
from cirray.core.errors import ConfigError, DataError
from cirray.generators.captioners.base import CAPTIONERS, CaptionerSettings, Picture
from cirray.generators.config import DecodingConfig
from cirray.generators.decoding import decode
from cirray.generators.prompts import prompt
from cirray.generators.store import load_model
from cirray.types import stable_id

_DESCRIBE = "describe/1"
_DECODING = DecodingConfig(max_new_tokens=80)


@CAPTIONERS.register("small")
class SmallCaptioner:
    """Greedy captions from patch tokens."""

    def __init__(self, settings: CaptionerSettings) -> None:
        """Load a generator artifact.

        Raises:
            ArtifactError: when there is none.
            ConfigError: without features.
        """
        if settings.features is None:
            raise ConfigError("The captioner 'small' reads features; name the artifacts that hold them (features).")
        folder = localize(settings.source, "generator")
        self._model = load_model(folder).to(settings.device).eval()
        self._features, self._batch = settings.features, settings.batch
        self.digest = stable_id("small-captioner", directory_digest(folder), _DECODING.to_yaml(), _DESCRIBE)

    def content(self, picture: Picture) -> bytes:
        """The image's patch tokens.

        Raises:
            DataError: for an image without features.
        """
        if picture.image_id not in self._features:
            raise DataError(f"Image {picture.image_id!r} has no features. Embed it first.")
        return np.ascontiguousarray(self._features.get([picture.image_id])).tobytes()

    @torch.inference_mode()
    def caption(self, pictures: Sequence[Picture]) -> list[str]:
        """One sentence per image; a text that does not end is a failure."""
        texts: list[str] = []
        for begin in range(0, len(pictures), self._batch):
            ids = [picture.image_id for picture in pictures[begin : begin + self._batch]]
            weight = self._model.projection.weight
            patches_BPD = torch.from_numpy(self._features.get(ids)).to(weight.device, weight.dtype)
            prefix_BLE = self._model.image_prefix(self._model.read_image(patches_BPD), prompt(_DESCRIBE))
            for row in decode(self._model.lm, prefix_BLE, _DECODING, self._model.language.end_id):
                text = str(self._model.language.tokenizer.decode(row.ids, skip_special_tokens=True)).strip()
                texts.append(text if row.finished else "")
        return texts
