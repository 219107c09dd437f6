"""Hard-negative NCE: in-batch contrast in which more similar negatives weigh more (VDG).

For cosine similarities s, n rows and j != i (Jang et al., 2024; docs/PAPERS.md#hard-negative-nce):

    w_ij = (n - 1) exp(beta s_ij / tau) / sum_{k != i} exp(beta s_ik / tau)
    L_i  = -log( exp(s_ii / tau) / (alpha exp(s_ii / tau) + sum_{j != i} w_ij exp(s_ij / tau)) )

Computed in logarithms, since at tau = 0.01 the exponentials reach e^100. Beta 0 and alpha 1 are InfoNCE. Unlike the
released code, a row's weights add up to its n - 1 negatives.
"""

import math

import torch

_NOTHING = -1e30
"""In place of log(0), so that a row without negatives is not NaN."""


def hard_negative_nce(
    scores_BN: torch.Tensor,
    positive_B: torch.Tensor,
    temperature: torch.Tensor | float,
    hidden_BN: torch.Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
    detach_weights: bool = False,
) -> torch.Tensor:
    """One direction of the loss; the other is the same function on the transposed scores. Arguments as for
    `contrastive`.

    `alpha` > 0 is the factor of the positive in the denominator; `beta` is how much harder negatives weigh more (0: all
    alike), with weights that may be held fixed in the backward pass.

    Returns: Losses `[B]`, in nats; `log(alpha)` for a row without any negative.
    """
    logits_BN = scores_BN.float() / temperature
    negative_BN = negatives(logits_BN, positive_B, hidden_BN)
    log_weight_BN = hard_log_weights(logits_BN, negative_BN, beta)
    if detach_weights:
        log_weight_BN = log_weight_BN.detach()
    pushed_BN = (log_weight_BN + logits_BN).masked_fill(~negative_BN, float("-inf"))
    positive_B1 = logits_BN.gather(1, positive_B[:, None])
    return torch.cat([positive_B1 + math.log(alpha), pushed_BN], dim=1).logsumexp(dim=1) - positive_B1[:, 0]


def hard_log_weights(logits_BN: torch.Tensor, negative_BN: torch.Tensor, beta: float) -> torch.Tensor:
    """Logarithms of w: a row's weights add up to the number of its negatives; 0 where there is no negative."""
    hard_BN = (beta * logits_BN).masked_fill(~negative_BN, _NOTHING)
    count_B1 = negative_BN.sum(dim=1, keepdim=True).clamp_min(1).to(logits_BN.dtype)
    log_weight_BN = count_B1.log() + hard_BN - hard_BN.logsumexp(dim=1, keepdim=True)
    return log_weight_BN.masked_fill(~negative_BN, 0.0)


def negatives(scores_BN: torch.Tensor, positive_B: torch.Tensor, hidden_BN: torch.Tensor | None) -> torch.Tensor:
    """Mask `[B, N]` of what pushes a row: every candidate but its positive and the hidden ones."""
    negative_BN = torch.ones_like(scores_BN, dtype=torch.bool) if hidden_BN is None else ~hidden_BN
    return negative_BN.scatter(1, positive_B[:, None], False)
