"""The embedded world's exact captioner: each soft token is read as the phrase whose word embeddings are nearest.

The alignment by `bags` draws the Q-Former's soft token of a cell to the summed word embeddings of its phrase (trained
on the captions of the labelled part alone), so the phrase can be read back; no text is decoded. The small language
model describes worse than it tells differences (`small`).
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch

from cirray.core.artifacts import directory_digest, localize
from cirray.core.errors import ConfigError, DataError
from cirray.data.shapes.grammar import CAPTION_PARTS
from cirray.data.shapes.scenes import COLOURS, PLACES, SHAPES, SIZES
from cirray.generators.captioners.base import CAPTIONERS, CaptionerSettings, Picture
from cirray.generators.store import load_model
from cirray.models.towers.language import bag_ids, embed_bags
from cirray.types import stable_id

EMPTY = "empty"
_WIDTH = 12


@CAPTIONERS.register("cells")
class CellCaptioner:
    """Phrases of the nine cells, in reading order, joined to a caption of the grammar."""

    def __init__(self, settings: CaptionerSettings) -> None:
        """Load a generator artifact that was aligned by bags.

        Raises:
            ArtifactError: when there is none.
            ConfigError: without features, or for a generator that does not read one token a cell.
            DataError: when the language model lacks words of the grammar.
        """
        if settings.features is None:
            raise ConfigError("The captioner 'cells' reads features; name the artifacts that hold them (features).")
        folder = localize(settings.source, "generator")
        self._model = load_model(folder).to(settings.device).eval()
        queries = self._model.config.qformer.queries
        if queries != len(PLACES):
            raise ConfigError(
                f"The captioner 'cells' needs one soft token for each of {len(PLACES)} cells; the generator "
                f"{settings.source!r} has {queries}. Use captioner=small."
            )
        self._features, self._batch = settings.features, settings.batch
        self._things = [*(" ".join(words) for words in product(SIZES, COLOURS, SHAPES)), EMPTY]
        self._phrase_QCE = self._phrases()
        self.digest = stable_id("cell-captioner", directory_digest(folder))

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
        """One sentence per image; an image in which every cell is empty is a failure."""
        texts: list[str] = []
        for begin in range(0, len(pictures), self._batch):
            ids = [picture.image_id for picture in pictures[begin : begin + self._batch]]
            weight = self._model.projection.weight
            patches_BPD = torch.from_numpy(self._features.get(ids)).to(weight.device, weight.dtype)
            soft_QBE = self._model.read_image(patches_BPD).float().transpose(0, 1)
            chosen_QB = torch.cdist(soft_QBE, self._phrase_QCE).argmin(dim=2)
            texts += [self._sentence(row) for row in chosen_QB.T.tolist()]
        return texts

    @torch.inference_mode()
    def _phrases(self) -> torch.Tensor:
        """Vectors of everything that each cell may hold: `[Q, C, E]`."""
        language = self._model.language
        bags = [[f"{thing} {place}".split() for thing in self._things] for place in PLACES]
        return torch.stack(
            [
                embed_bags(language, bag_ids(language, cell, _WIDTH).to(self._model.projection.weight.device))
                for cell in bags
            ]
        ).float()

    def _sentence(self, chosen: Sequence[int]) -> str:
        things = [self._things[number] for number in chosen]
        parts = zip(things, PLACES, strict=True)
        return " and ".join(CAPTION_PARTS[0].format(thing=t, place=p) for t, p in parts if t != EMPTY)
