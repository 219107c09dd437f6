"""Contrastive loss of queries against candidates, per row, and its twin that never holds the full score matrix.

L_i = CE_eps(s_i. / tau, p_i) over the candidates that row i may see (InfoNCE; docs/PAPERS.md#two-hop-alignment).
"""

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint

ScoreFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def contrastive(
    scores_BN: torch.Tensor,
    positive_B: torch.Tensor,
    temperature: torch.Tensor | float,
    hidden_BN: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Cross-entropy of each row's scores against its positive candidate.

    Args:
        scores_BN: similarities, before the temperature.
        positive_B: index of each row's target among the candidates.
        temperature: divides the scores.
        hidden_BN: True for candidates a row must not see (other copies of its target); never the positive itself.
        label_smoothing: share of the target mass spread evenly over the visible candidates, as torch does.

    Returns: Losses `[B]`, in nats.
    """
    logits_BN = scores_BN.float() / temperature
    if hidden_BN is not None:
        logits_BN = logits_BN.masked_fill(hidden_BN, float("-inf"))
    log_p_BN = logits_BN.log_softmax(dim=1)
    loss_B = -log_p_BN.gather(1, positive_B[:, None])[:, 0]
    if label_smoothing:
        spread_B = _mean_visible(-log_p_BN, hidden_BN)
        loss_B = (1 - label_smoothing) * loss_B + label_smoothing * spread_B
    return loss_B


def contrastive_chunked(
    score: ScoreFunction,
    query_BD: torch.Tensor,
    candidates_NQD: torch.Tensor,
    positive_B: torch.Tensor,
    temperature: torch.Tensor | float,
    hidden_BN: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    rows: int = 64,
) -> torch.Tensor:
    """`contrastive` over blocks of rows; scores are recomputed in the backward pass, so memory is one block's.

    Returns: Losses `[B]`, equal to the full matrix's in value and gradient.
    """

    def block(query: torch.Tensor, candidates: torch.Tensor, tau: torch.Tensor | float, begin: int) -> torch.Tensor:
        part = slice(begin, begin + rows)
        hidden = hidden_BN[part] if hidden_BN is not None else None
        return contrastive(score(query, candidates), positive_B[part], tau, hidden, label_smoothing)

    parts = [
        checkpoint(block, query_BD[begin : begin + rows], candidates_NQD, temperature, begin, use_reentrant=False)
        for begin in range(0, query_BD.shape[0], rows)
    ]
    return torch.cat(parts)


def _mean_visible(values_BN: torch.Tensor, hidden_BN: torch.Tensor | None) -> torch.Tensor:
    if hidden_BN is None:
        return values_BN.mean(dim=1)
    visible = values_BN.masked_fill(hidden_BN, 0.0)
    return visible.sum(dim=1) / (~hidden_BN).sum(dim=1)
