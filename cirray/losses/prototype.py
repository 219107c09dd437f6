"""Hop 1 of PTHA: the forward prototype is drawn towards the reverse one, which is held fixed.

L_p2p = 1/W * || mean_k P_r2t - sg(mean_k P_t2r) ||^2 on means neither projected nor normalised
(docs/PAPERS.md#two-hop-alignment).
"""

import torch
from torch.nn import functional

from cirray.core.errors import ConfigError


def prototype_distance(forward_BW: torch.Tensor, reverse_BW: torch.Tensor, kind: str = "mse") -> torch.Tensor:
    """Distance per row of the token means of (reference, text) and (target, reverse text); no gradient reaches the
    reverse side.

    `kind`: "mse" (mean over the width) or "cosine" (1 - cosine).

    Returns: Distances `[B]`, >= 0.
    """
    forward_BW, reverse_BW = forward_BW.float(), reverse_BW.float().detach()
    if kind == "mse":
        return (forward_BW - reverse_BW).square().mean(dim=1)
    if kind == "cosine":
        return 1 - functional.cosine_similarity(forward_BW, reverse_BW, dim=1)
    raise ConfigError(f"Unknown prototype distance {kind!r}. Known: cosine, mse.")
