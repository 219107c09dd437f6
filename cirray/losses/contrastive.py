"""Contrastive loss of rows against candidates.

L_i = CE_eps(s_i. / tau, p_i) over the candidates that row i may see (InfoNCE; docs/PAPERS.md#two-hop-alignment).
"""

import torch
from torch.nn import functional

from cirray.losses.sums import RowSums


def contrastive(sums: RowSums, label_smoothing: float = 0.0) -> torch.Tensor:
    """Cross-entropy of each row's logits against its positive candidate.

    `label_smoothing` is the share of the target mass that is spread evenly over the visible candidates, as torch does.

    Returns: Losses `[B]`, in nats.
    """
    loss_B = functional.softplus(sums.others_BK[:, 0] - sums.own_B)  # log(e^own + e^others) - own
    if label_smoothing:
        assert sums.total_B is not None, "label smoothing reads the sums of the logits (totals=True)"
        spread_B = sums.own_B + loss_B - (sums.own_B + sums.total_B) / (1 + sums.count_B)
        loss_B = (1 - label_smoothing) * loss_B + label_smoothing * spread_B
    return loss_B
