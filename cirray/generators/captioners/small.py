"""The embedded world's own captioner: a generator's Q-Former reads one image, its frozen language model describes it.

The Q-Former's soft tokens were aligned with the captions of the labelled part (`cirray.training.generation`); the
language model can describe from its text-only pretraining. A generator trained with `training.steps=0` has seen only
captions.
"""

import torch

from cirray.core.contents import canonical
from cirray.generators.captioners.base import CaptionerSetup
from cirray.generators.captioners.config import CAPTIONERS, ReadingConfig
from cirray.generators.captioners.reading import ReadingCaptioner
from cirray.generators.config import DecodingConfig
from cirray.generators.decoding import decode
from cirray.generators.prompts import prompt
from cirray.types import stable_id

_DESCRIBE = "describe/1"
_DECODING = DecodingConfig(max_new_tokens=80)


@CAPTIONERS.register("small")
class SmallCaptioner(ReadingCaptioner):
    """Greedy captions from patch tokens."""

    def __init__(self, settings: ReadingConfig, setup: CaptionerSetup) -> None:
        """Load a generator artifact. Raises ArtifactError: when there is none."""
        super().__init__(settings, setup)
        self.digest = stable_id("small-captioner", self._generator_digest, canonical(_DECODING.identity()), _DESCRIBE)

    def describe(self, soft_BQE: torch.Tensor) -> list[str]:
        """One sentence per image; a text that does not end is a failure."""
        texts = []
        prefix_BLE = self._model.image_prefix(soft_BQE, prompt(_DESCRIBE))
        for row in decode(self._model.lm, prefix_BLE, _DECODING, self._model.language.end_id):
            text = str(self._model.language.tokenizer.decode(row.ids, skip_special_tokens=True)).strip()
            texts.append(text if row.finished else "")
        return texts
