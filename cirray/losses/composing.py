"""The composing loss: a query against the batch's targets, its own reference and mined hard negatives.

L_cmp (two-stage mapping/composing, after arXiv 2504.17990; the form is ours, docs/PAPERS.md#composing):
-log e^(z.v_t) / (sum_j e^(z.v_tj) + e^(z.v_r) + sum_h e^(z.v_h)), every product divided by the temperature.
"""

import torch

from cirray.losses.contrastive import contrastive


def composing(
    scores_BN: torch.Tensor,
    positive_B: torch.Tensor,
    temperature: torch.Tensor | float,
    hidden_BN: torch.Tensor | None = None,
    negative_BH: torch.Tensor | None = None,
    dropped_BH: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross-entropy of each row over the batch's targets and over negatives of its own.

    Args:
        scores_BN: query against the targets of all ranks.
        positive_B: index of each row's target.
        temperature: divides all scores.
        hidden_BN: True for targets a row must not see.
        negative_BH: scores against the row's own negatives: its reference, its mined images.
        dropped_BH: True for own negatives that do not count (the reference where it is the target, unused places).

    Returns: Losses `[B]`, in nats. Without own negatives this is InfoNCE.
    """
    if negative_BH is None:
        return contrastive(scores_BN, positive_B, temperature, hidden_BN)
    hidden = torch.zeros_like(scores_BN, dtype=torch.bool) if hidden_BN is None else hidden_BN
    dropped = torch.zeros_like(negative_BH, dtype=torch.bool) if dropped_BH is None else dropped_BH
    return contrastive(
        torch.cat([scores_BN, negative_BH], dim=1), positive_B, temperature, torch.cat([hidden, dropped], dim=1)
    )
