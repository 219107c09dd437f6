"""Retention by distillation: the tuned pseudo-sentence stays near the frozen one, 1 - cos(y_i, u_i).

The other form of L_ret (after arXiv 2504.17990; the form is ours, docs/PAPERS.md#retention).
"""

import numpy as np
import torch

from cirray.core.errors import ConfigError
from cirray.models.batch import Wanted
from cirray.models.words.word_map import PLAIN, WordMapRetriever
from cirray.training.terms.base import TERMS, Term, TermInput, TermRows, TermSetup
from cirray.training.terms.config import TermConfig

_BLOCK = 256


@TERMS.register("retention_distill")
class RetentionDistill(Term[TermConfig]):
    """Distance to the start weights' pseudo-sentence of the same image."""

    def __init__(self, setup: TermSetup, settings: TermConfig) -> None:
        """Encode every reference's pseudo-sentence once, by the start weights.

        Raises ConfigError for a retriever without pseudo-words.
        """
        super().__init__(setup, settings)
        self.check(setup, setup.retriever.kind, settings)
        assert isinstance(setup.retriever, WordMapRetriever)
        retriever, references = setup.retriever.eval(), [row.reference_id for row in setup.triplets]
        chosen = np.unique(setup.image_ids.places(references)).tolist()
        self._frozen_ID = torch.zeros(len(setup.image_ids), retriever.config.embed_dim)
        with torch.no_grad():
            for begin in range(0, len(chosen), _BLOCK):
                part = chosen[begin : begin + _BLOCK]
                patches_BPD = torch.from_numpy(setup.features.get([setup.image_ids[place] for place in part]))
                self._frozen_ID[part] = retriever.pseudo_sentences(retriever.encode_reference(patches_BPD)).cpu()

    @classmethod
    def check(cls, rows: TermRows, kind: str, settings: TermConfig) -> None:
        """Refuse a retriever without pseudo-words. Raises ConfigError: naming its kind."""
        if kind != WordMapRetriever.kind:
            raise ConfigError(f"retention_distill is for word_map retrievers, not for {kind!r}.")

    wanted = Wanted(more=frozenset({PLAIN}))

    def __call__(self, given: TermInput) -> torch.Tensor:
        """Scalar, from 0 to 2."""
        plain_BD = given.output.more[PLAIN]
        frozen_BD = self._frozen_ID[given.batch.reference_key_B.cpu()].to(plain_BD.device)
        return given.mean(1 - (plain_BD * frozen_BD).sum(dim=1))
