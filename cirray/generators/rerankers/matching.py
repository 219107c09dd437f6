"""The matching head of a checkpoint as a reranker: one pass over an answer's patches and the text.

The head compares the text with the answer alone; the reference is in the order that it starts from.
"""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch

from cirray.core.errors import ConfigError
from cirray.generators.rerankers.base import Asked, RerankSetup
from cirray.generators.rerankers.config import RERANKERS, MatchingConfig
from cirray.models.matching import matched


@RERANKERS.register("matching")
class MatchingReranker:
    """Scores are the head's probability that the text leads to the picture."""

    def __init__(self, settings: MatchingConfig, setup: RerankSetup) -> None:
        """Take the retriever's head.

        Raises:
            ConfigError: when it has none.
        """
        if getattr(setup.encoder, "matching_head", None) is None:
            raise ConfigError(
                f"rerank kind 'matching' needs a matching head, which this retriever (kind {setup.encoder.kind!r}) "
                "lacks. Train one (encoder.settings.matching=trained with training.terms.tdm=1.0, as VDG does), or use "
                "rerank kind 'lmm'."
            )
        self._settings, self._encoder = settings, setup.encoder

    @torch.inference_mode()
    def scores(self, asked: Sequence[Asked]) -> list[np.ndarray]:
        """See `Reranker.scores`; answers of all queries share the forward passes."""
        rows = [(item, name) for item in asked for name in item.ids]
        parts = [
            self._matched(rows[begin : begin + self._settings.batch])
            for begin in range(0, len(rows), self._settings.batch)
        ]
        ends = np.cumsum([len(item.ids) for item in asked])[:-1]
        return np.split(np.concatenate(parts), ends) if parts else []

    def _matched(self, rows: Sequence[tuple[Asked, str]]) -> np.ndarray:
        seen = [list(own) for _, own in groupby(rows, key=lambda row: id(row[0].sights))]
        patches_BPW = torch.cat([own[0][0].sights.patches([name for _, name in own]) for own in seen])
        text = self._encoder.tokenize([item.text or "" for item, _ in rows])
        return matched(self._encoder, self._settings.variant, patches_BPW, text).float().cpu().numpy()
