"""Hop 1 of PTHA, L_p2p: the forward prototype is drawn towards the reverse one, where a reverse text exists.

L_p2p = 1/W || mean_k P_r2t - sg(mean_k P_t2r) ||^2, P_r2t from (reference, text), P_t2r from (target, reverse text), sg
without gradient; mean over the rows that have both (Zhou et al., 2025; docs/PAPERS.md#two-hop-alignment).
PTHA: L = L_q2t + lambda_m L_m2t + lambda_p L_p2p.
"""

import torch

from cirray.core.errors import DataError
from cirray.losses.prototype import prototype_distance
from cirray.models.batch import Wanted
from cirray.training.terms.base import TERMS, Term, TermInput
from cirray.training.terms.config import TwoHopConfig


@TERMS.register("two_hop")
class TwoHop(Term[TwoHopConfig]):
    """Distance of the prototypes of (reference, text) and (target, reverse text); the reverse side is held fixed."""

    wanted = Wanted(reverse=True)

    def __call__(self, given: TermInput) -> torch.Tensor:
        """Scalar; 0 when no row has a reverse text.

        Raises DataError in paper mode (`missing_reverse: error`), for a row without a reverse text.
        """
        batch, output = given.batch, given.output
        mask_B = batch.reverse_mask_B if batch.reverse_mask_B is not None else torch.zeros_like(batch.weight_B)
        if self.settings.missing_reverse == "error" and not bool((mask_B > 0).all()):
            row = int(torch.argmin(mask_B))
            raise DataError(
                f"Row {row} of a batch has no reverse text, which the term two_hop needs in paper mode. "
                "Generate reverse texts first, or set training.terms.two_hop.missing_reverse to skip."
            )
        weight_B = mask_B.to(batch.weight_B.dtype) * batch.weight_B
        if output.reverse_prototype_BW is None or output.prototype_BW is None:
            distance_B = torch.zeros_like(output.query_BD[:, 0])
        else:
            kind = self.settings.distance
            distance_B = prototype_distance(output.prototype_BW, output.reverse_prototype_BW, kind)
        return given.mean(distance_B, weight_B)
