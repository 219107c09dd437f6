"""The result of an objective, the weighted sum of named terms, and weighted means over the rows of all ranks."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from cirray.core.errors import ConfigError


@dataclass(frozen=True)
class LossOutput:
    """`total` is a scalar with gradient; `terms` are unweighted parts and other numbers to log (scalars)."""

    total: torch.Tensor
    terms: dict[str, torch.Tensor] = field(default_factory=dict)


def weighted_sum(terms: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> LossOutput:
    """Sum of `weights[name] * terms[name]`; a term without a weight is logged only.

    Raises ConfigError for a weight without a term, or when no weight is given.
    """
    missing = sorted(set(weights) - set(terms))
    if missing or not weights:
        raise ConfigError(
            f"Loss weights name {missing}, but the terms are {sorted(terms)}. Weight existing terms only."
        )
    total = torch.stack([weights[name] * terms[name] for name in weights]).sum()
    return LossOutput(total, {name: value.detach() for name, value in terms.items()})


def weighted_mean(loss_B: torch.Tensor, weight_B: torch.Tensor, mean_total: torch.Tensor | None = None) -> torch.Tensor:
    """`sum(weight * loss) / sum(weight)`, 0 when no row has weight; rows of weight 0 may hold anything finite.

    `mean_total` is the weights' sum over all ranks divided by the number of ranks. With it, the mean over ranks of the
    results is the weighted mean over all rows.
    """
    total = weight_B.sum() if mean_total is None else mean_total
    return (loss_B * weight_B).sum() / total.clamp_min(torch.finfo(loss_B.dtype).tiny)
