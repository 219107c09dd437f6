"""Hard-negative NCE: in-batch contrast in which more similar negatives weigh more (VDG).

For cosine similarities s, n rows and j != i (Jang et al., 2024; docs/PAPERS.md#hard-negative-nce):

    w_ij = (n - 1) exp(beta s_ij / tau) / sum_{k != i} exp(beta s_ik / tau)
    L_i  = -log( exp(s_ii / tau) / (alpha exp(s_ii / tau) + sum_{j != i} w_ij exp(s_ij / tau)) )

The weighted sum is (n - 1) times a quotient of two sums, of exp((1 + beta) s / tau) and of exp(beta s / tau). Computed
in logarithms, since at tau = 0.01 the exponentials reach e^100. Beta 0 and alpha 1 are InfoNCE. Unlike the released
code, a row's weights add up to its n - 1 negatives.
"""

import math

import torch
from torch.nn import functional

from cirray.losses.sums import NOTHING, RowSums


def powers(beta: float) -> tuple[float, float]:
    """The powers of the sums that the loss needs."""
    return 1 + beta, beta


def hard_negative_nce(
    sums: RowSums, alpha: float = 1.0, beta: float = 0.0, detach_weights: bool = False
) -> torch.Tensor:
    """One direction of the loss; the other is the same function with rows and candidates exchanged.

    `sums` have `powers(beta)`. `alpha` > 0 is the factor of the positive in the denominator; `beta` is how much harder
    negatives weigh more (0: all alike), with weights that may be held fixed in the backward pass.

    Returns: Losses `[B]`, in nats; `log(alpha)` for a row without any negative.
    """
    strong_B, weak_B = sums.others_BK.unbind(dim=1)
    if detach_weights:  # of the power 1 + beta the weights have beta
        strong_B = strong_B.detach() + (strong_B - strong_B.detach()) / (1 + beta)
        weak_B = weak_B.detach()
    pushed_B = sums.count_B.clamp_min(1).float().log() + strong_B - weak_B
    pushed_B = pushed_B.masked_fill(sums.count_B == 0, NOTHING)
    return math.log(alpha) + functional.softplus(pushed_B - sums.own_B - math.log(alpha))
