"""The composing loss: a query against the batch's targets, its own reference and mined hard negatives.

L_cmp (two-stage mapping/composing, after arXiv 2504.17990; the form is ours, docs/PAPERS.md#composing):
-log e^(z.v_t) / (sum_j e^(z.v_tj) + e^(z.v_r) + sum_h e^(z.v_h)), every product divided by the temperature.
"""

from dataclasses import replace

import torch

from cirray.losses.contrastive import contrastive
from cirray.losses.sums import NOTHING, RowSums


def composing(
    sums: RowSums, negative_BH: torch.Tensor | None = None, dropped_BH: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross-entropy of each row over the batch's targets and over negatives of its own.

    Args:
        sums: query against the targets of all ranks.
        negative_BH: logits of the row's own negatives: its reference, its mined images.
        dropped_BH: True for own negatives that do not count (the reference where it is the target, unused places).

    Returns: Losses `[B]`, in nats. Without own negatives this is InfoNCE.
    """
    if negative_BH is None:
        return contrastive(sums)
    logits_BH = negative_BH.float()
    if dropped_BH is not None:
        logits_BH = logits_BH.masked_fill(dropped_BH, NOTHING)
    others_B1 = torch.logaddexp(sums.others_BK[:, :1], logits_BH.logsumexp(dim=1, keepdim=True))
    return contrastive(replace(sums, others_BK=others_B1))
