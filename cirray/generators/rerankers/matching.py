"""The matching head of a checkpoint as a reranker: one pass over an answer's patches and the text.

The head compares the text with the answer alone, so its verdict stands beside the retriever's, which knows the
reference: similarity over the temperature, plus a weight times the head's log-odds. Training chooses the weight on
held-out triplets, and 0 where the head is no help there.
"""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch

from cirray.core.errors import ConfigError
from cirray.core.log import get_logger
from cirray.generators.rerankers.base import Asked, RerankSetup
from cirray.generators.rerankers.config import RERANKERS, MatchingConfig
from cirray.models.matching import log_odds

_LOG = get_logger(__name__)


@RERANKERS.register("matching")
class MatchingReranker:
    """Scores are the retriever's similarity and the head's log-odds that the text leads to the picture, together."""

    def __init__(self, settings: MatchingConfig, setup: RerankSetup) -> None:
        """Take the retriever's head.

        Raises:
            ConfigError: when it has none, or no weight for it is known.
        """
        head = getattr(setup.encoder, "matching_head", None)
        if head is None:
            raise ConfigError(
                f"rerank kind 'matching' needs a matching head, which this retriever (kind {setup.encoder.kind!r}) "
                "lacks. Train one (encoder.settings.matching=trained with training.terms.tdm_hard=1.0), or use rerank "
                "kind 'lmm'."
            )
        self.weight = head.chosen_weight if settings.weight is None else settings.weight
        if self.weight is None:
            raise ConfigError(
                "No weight was chosen for this checkpoint's matching head, as its training measured no held-out "
                "triplets (validation.queries). Set rerank.settings.weight, e.g. to 0.5, after trying some on a "
                "validation split."
            )
        if not self.weight and settings.weight is None:
            _LOG.warning(
                "answers keep the retriever's order: the matching head was no help on held-out triplets when it was "
                "trained, so its weight is 0 (rerank.settings.weight sets another)"
            )
        self._settings, self.encoder = settings, setup.encoder

    @property
    def told(self) -> str:
        """See `Reranker.told`."""
        return f"weight {self.weight:g}"

    def scores(self, asked: Sequence[Asked]) -> list[np.ndarray]:
        """See `Reranker.scores`."""
        sharpness = 1 / float(self.encoder.temperature.detach())
        own = [sharpness * np.asarray(item.scores, dtype=np.float64) for item in asked]
        if not self.weight:
            return own
        return [mine + self.weight * odds for mine, odds in zip(own, self.log_odds(asked), strict=True)]

    @torch.inference_mode()
    def log_odds(self, asked: Sequence[Asked]) -> list[np.ndarray]:
        """The head's log-odds `[K]` of every query's answers; answers of all queries share the forward passes."""
        rows = [(item, name) for item in asked for name in item.ids]
        parts = [
            self._log_odds(rows[begin : begin + self._settings.batch])
            for begin in range(0, len(rows), self._settings.batch)
        ]
        ends = np.cumsum([len(item.ids) for item in asked])[:-1]
        return np.split(np.concatenate(parts), ends) if parts else []

    def _log_odds(self, rows: Sequence[tuple[Asked, str]]) -> np.ndarray:
        seen = [list(own) for _, own in groupby(rows, key=lambda row: id(row[0].sights))]
        patches_BPW = torch.cat([own[0][0].sights.patches([name for _, name in own]) for own in seen])
        text = self.encoder.tokenize([item.text or "" for item, _ in rows])
        return log_odds(self.encoder, patches_BPW, text).double().cpu().numpy()
