"""Weighted means over the rows of all ranks."""

import torch


def weighted_mean(loss_B: torch.Tensor, weight_B: torch.Tensor, mean_total: torch.Tensor | None = None) -> torch.Tensor:
    """`sum(weight * loss) / sum(weight)`, 0 when no row has weight; rows of weight 0 may hold anything finite.

    `mean_total` is the weights' sum over all ranks divided by the number of ranks. With it, the mean over ranks of the
    results is the weighted mean over all rows.
    """
    total = weight_B.sum() if mean_total is None else mean_total
    return (loss_B * weight_B).sum() / total.clamp_min(torch.finfo(loss_B.dtype).tiny)
