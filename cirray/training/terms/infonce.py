"""The contrastive term L_q2t: every query against the batch's images (docs/PAPERS.md#synthetic-pretraining)."""

import torch

from cirray.training.terms.base import TERMS, Term, TermInput
from cirray.training.terms.config import InfoNCEConfig


@TERMS.register("infonce")
class InfoNCE(Term[InfoNCEConfig]):
    """-log softmax of the own target's similarity over temperature, with label smoothing where configured."""

    contrasts = True

    def __call__(self, given: TermInput) -> torch.Tensor:
        """Scalar, in nats."""
        return given.contrast(given.output.query_BD, self.settings.label_smoothing)
