"""NT-Xent of two views of the same items (SimCLR; SEARLE's distillation): 2N vectors, one of them the right answer.

Unlike the symmetric contrast of `soft_text.py`, the other vectors of the own side are negatives too. All vectors have
norm 1.
"""

import torch

from cirray.losses.contrastive import contrastive
from cirray.losses.hidden import Hidden
from cirray.losses.soft_text import dot
from cirray.losses.sums import row_sums


def nt_xent(
    left_BD: torch.Tensor, right_BD: torch.Tensor, left_ND: torch.Tensor, right_ND: torch.Tensor,
    positive_B: torch.Tensor, temperature: float,
) -> torch.Tensor:  # fmt: skip
    """Mean of both directions of -log softmax at the item's other vector, over all vectors but the item itself.

    Left are SEARLE's phi tokens, right the tokens that were found, of this rank (B) and of all ranks (N); `positive_B`
    is the place of the rank's rows among all. SEARLE's temperature is 0.25.

    Returns: Losses `[B]`, in nats.
    """
    forward_B = _one_way(left_BD, right_ND, left_ND, positive_B, temperature)
    return 0.5 * (forward_B + _one_way(right_BD, left_ND, right_ND, positive_B, temperature))


def _one_way(
    asking_BD: torch.Tensor, other_ND: torch.Tensor, own_ND: torch.Tensor, positive_B: torch.Tensor, temperature: float
) -> torch.Tensor:
    place_M = torch.arange(2 * len(own_ND), device=positive_B.device)
    hidden = Hidden(place_M, positive_B, copies=False, further_BK=(positive_B + len(own_ND))[:, None])  # itself
    sums = row_sums(dot, asking_BD, torch.cat([other_ND, own_ND]), temperature, hidden, totals=False)
    return contrastive(sums)
