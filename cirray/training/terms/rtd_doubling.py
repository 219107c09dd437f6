"""One batch of 2N rows: composed queries with their targets, and pseudo-sentences with their references.

Among 2N candidates the own reference is a negative by construction, and the plain mapping is trained beside the
composed one (RTD's doubling, a variant of stage 2 after arXiv 2504.17990; docs/PAPERS.md#retention).
"""

import torch

from cirray.losses.contrastive import contrastive
from cirray.losses.hidden import Hidden
from cirray.models.batch import Wanted
from cirray.models.words.word_map import PLAIN
from cirray.training.terms.base import TERMS, Term, TermInput
from cirray.training.terms.config import TermConfig


@TERMS.register("rtd_doubling")
class RtdDoubling(Term[TermConfig]):
    """InfoNCE over both halves; candidates that show a row's positive again are hidden."""

    wanted = Wanted(references=True, more=frozenset({PLAIN}))

    def __call__(self, given: TermInput) -> torch.Tensor:
        """Scalar, in nats: the mean of the two halves."""
        output, batch, gather = given.output, given.batch, given.gather
        assert output.reference_BQD is not None
        tokens_MQD = torch.cat([gather.rows(output.target_BQD), gather.rows(output.reference_BQD)])
        key_M = torch.cat([gather.rows(batch.target_key_B), gather.rows(batch.reference_key_B)])
        own_B = torch.arange(len(output.query_BD), device=key_M.device) + gather.rank * len(output.query_BD)
        halves = []
        for query_BD, positive_B in ((output.query_BD, own_B), (output.more[PLAIN], own_B + len(key_M) // 2)):
            halves.append(contrastive(given.sums(query_BD, tokens_MQD, Hidden(key_M, positive_B))))
        return given.mean((halves[0] + halves[1]) / 2)
