"""A clamp that a parameter can leave again."""

from typing import Any

import torch


class _InwardClamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, low: float, high: float) -> torch.Tensor:
        """The clamped value."""
        ctx.save_for_backward(value)
        ctx.low, ctx.high = low, high
        return value.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """The gradient, without the part that would push a value further out of the range."""
        (value,) = ctx.saved_tensors
        gradient = gradients[0]
        outward = ((value > ctx.high) & (gradient < 0)) | ((value < ctx.low) & (gradient > 0))
        return gradient.masked_fill(outward, 0.0), None, None


def inward_clamp(value: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Clamp whose gradient is blocked only where a descent step would lead further out of the range.

    A plain clamp has no gradient outside its range, so a parameter outside never comes back.
    """
    return _InwardClamp.apply(value, low, high)
