"""The one scorer: training, evaluation and serving call these functions.

s_ij = max_k <q_i, g_jk> over an image's tokens (BLIP-2, SPRC, PTHA); with one token per image: the plain dot product.
"""

import torch
from torch.nn import functional


def unit(tokens: torch.Tensor, projection: torch.nn.Linear) -> torch.Tensor:
    """Projected and L2-normalised in float32, also under bf16 autocast: `[..., W]` -> `[..., D]`.

    Early in training all vectors are nearly equal, and bf16's three digits lose their differences.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        return functional.normalize(projection(tokens.to(projection.weight.dtype)), dim=-1)


def score(query_BD: torch.Tensor, gallery_NQD: torch.Tensor) -> torch.Tensor:
    """Similarity of every query to every image: `[B, N]`, in [-1, 1] for normalised vectors, higher is better."""
    images, tokens, width = gallery_NQD.shape
    with torch.autocast(query_BD.device.type, enabled=False):
        flat_BM = query_BD @ gallery_NQD.reshape(images * tokens, width).T
    return flat_BM.view(query_BD.shape[0], images, tokens).amax(dim=2)
