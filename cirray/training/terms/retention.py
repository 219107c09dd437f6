"""Retention: after the text encoder has been tuned, "a photo of $" must still find its image.

L_ret = InfoNCE(y_i, v_{r_i}) over the batch's references, y_i the pseudo-sentence by the tuned encoder (after arXiv
2504.17990; the form is ours, docs/PAPERS.md#retention). Tuning text alone to a frozen image side collapses without it.
"""

import torch

from cirray.losses.contrastive import contrastive
from cirray.losses.hidden import Hidden
from cirray.models.batch import Wanted
from cirray.models.words.word_map import PLAIN
from cirray.training.terms.base import TERMS, Term, TermInput
from cirray.training.terms.config import TermConfig


@TERMS.register("retention")
class Retention(Term[TermConfig]):
    """InfoNCE of pseudo-sentences against references; other copies of the own reference are hidden."""

    wanted = Wanted(references=True, more=frozenset({PLAIN}))

    def __call__(self, given: TermInput) -> torch.Tensor:
        """Scalar, in nats."""
        output, batch = given.output, given.batch
        assert output.reference_BQD is not None
        plain_BD, key_N = output.more[PLAIN], given.gather.rows(batch.reference_key_B)
        positive_B = torch.arange(len(plain_BD), device=key_N.device) + given.gather.rank * len(plain_BD)
        sums = given.sums(plain_BD, given.gather.rows(output.reference_BQD), Hidden(key_N, positive_B))
        return given.mean(contrastive(sums))
