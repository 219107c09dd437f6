"""The embedded world's exact captioner: each soft token is read as the phrase whose word embeddings are nearest.

The alignment by `bags` draws the Q-Former's soft token of a cell to the summed word embeddings of its phrase (trained
on the captions of the labelled part alone), so the phrase can be read back; no text is decoded. It is better than the
small language model's descriptions (`small`).
"""

from collections.abc import Sequence
from itertools import product

import torch

from cirray.core.errors import ConfigError
from cirray.data.shapes.grammar import CAPTION_PARTS
from cirray.data.shapes.scenes import COLOURS, PLACES, SHAPES, SIZES
from cirray.generators.captioners.base import CaptionerSetup
from cirray.generators.captioners.config import CAPTIONERS, ReadingConfig
from cirray.generators.captioners.reading import ReadingCaptioner
from cirray.models.towers.language import bag_ids, embed_bags
from cirray.types import stable_id

EMPTY = "empty"
_WIDTH = 12


@CAPTIONERS.register("cells")
class CellCaptioner(ReadingCaptioner):
    """Phrases of the nine cells, in reading order, joined to a caption of the grammar."""

    def __init__(self, settings: ReadingConfig, setup: CaptionerSetup) -> None:
        """Load a generator artifact that was aligned by bags.

        Raises ArtifactError when there is none; ConfigError for a generator that does not read one token a cell;
        DataError when the language model lacks words of the grammar.
        """
        super().__init__(settings, setup)
        queries = self._model.config.qformer.queries
        if queries != len(PLACES):
            raise ConfigError(
                f"The captioner 'cells' needs one soft token for each of {len(PLACES)} cells; the generator "
                f"{settings.source!r} has {queries}. Use captioner=small."
            )
        self._things = [*(" ".join(words) for words in product(SIZES, COLOURS, SHAPES)), EMPTY]
        self._phrase_QCE = self._phrases()
        self.digest = stable_id("cell-captioner", self._generator_digest)

    def describe(self, soft_BQE: torch.Tensor) -> list[str]:
        """One sentence per image; an image in which every cell is empty has none."""
        chosen_QB = torch.cdist(soft_BQE.float().transpose(0, 1), self._phrase_QCE).argmin(dim=2)
        return [self._sentence(row) for row in chosen_QB.T.tolist()]

    @torch.inference_mode()
    def _phrases(self) -> torch.Tensor:
        """Vectors of every possible content of each cell: `[Q, C, E]`."""
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
