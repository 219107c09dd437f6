"""The one scorer: training, evaluation and serving call these functions; the clamp of its temperature.

s_ij = max_k <q_i, g_jk> over an image's tokens (BLIP-2, SPRC, PTHA); with one token per image: the plain dot product.
"""

from typing import Any

import torch
from torch.nn import functional


class Projection(torch.nn.Linear):
    """A linear layer in float32, also under bf16 autocast and with bf16 weights: `[..., W]` -> `[..., D]`.

    Early in training all vectors are nearly equal, and bf16's three digits lose their differences.
    """

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Projected tokens."""
        with torch.autocast(tokens.device.type, enabled=False):
            return functional.linear(tokens.float(), self.weight.float(), self.bias.float())


def unit(tokens: torch.Tensor, projection: Projection) -> torch.Tensor:
    """Projected and L2-normalised in float32: `[..., W]` -> `[..., D]`."""
    return functional.normalize(projection(tokens), dim=-1)


def score(query_BD: torch.Tensor, gallery_NQD: torch.Tensor) -> torch.Tensor:
    """Similarity of every query to every image: `[B, N]`, in [-1, 1] for normalised vectors, higher is better."""
    images, tokens, width = gallery_NQD.shape
    with torch.autocast(query_BD.device.type, enabled=False):
        flat_BM = query_BD @ gallery_NQD.reshape(images * tokens, width).T
    return flat_BM.view(query_BD.shape[0], images, tokens).amax(dim=2)


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
