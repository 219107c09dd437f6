"""Visual semantic injection: the pseudo-word reads the image's patches before it enters the text encoder.

q0 = phi(g), P~ = LN(P W_p); per layer q' = q + tanh(a) Attn(LN q, P~, P~), q'' = q' + tanh(b) FFN(LN q'); the gates a
and b start at 0, so that an untrained injection is plain phi (after arXiv 2504.17990; its purpose is the paper's, its
layers are ours: docs/PAPERS.md#visual-semantic-injection). The token depends on the image alone.
"""

import torch
from torch import nn

from cirray.models.words.config import InjectionConfig


class InjectionLayer(nn.Module):
    """One gated cross-attention with its gated feed-forward."""

    def __init__(self, width: int, heads: int, factor: int) -> None:
        """Random weights, closed gates."""
        super().__init__()
        self.before_attention, self.before_feed_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(width, factor * width), nn.GELU(), nn.Linear(factor * width, width))
        self.attention_gate, self.feed_forward_gate = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, tokens_BNW: torch.Tensor, patches_BPW: torch.Tensor) -> torch.Tensor:
        """Tokens after the layer."""
        seen_BNW, _ = self.attention(self.before_attention(tokens_BNW), patches_BPW, patches_BPW, need_weights=False)
        tokens_BNW = tokens_BNW + torch.tanh(self.attention_gate) * seen_BNW
        inner_BNW = self.feed_forward(self.before_feed_forward(tokens_BNW))
        return tokens_BNW + torch.tanh(self.feed_forward_gate) * inner_BNW


class Injection(nn.Module):
    """Tokens `[B, N, W]` and patches `[B, P, D]` -> tokens `[B, N, W]`."""

    def __init__(self, config: InjectionConfig, patch_width: int, width: int) -> None:
        """Random weights from the global torch generator, closed gates."""
        super().__init__()
        self.project, self.norm = nn.Linear(patch_width, width), nn.LayerNorm(width)
        self.layers = nn.ModuleList(InjectionLayer(width, config.heads, config.factor) for _ in range(config.layers))

    def forward(self, tokens_BNW: torch.Tensor, patches_BPD: torch.Tensor) -> torch.Tensor:
        """Tokens that have read the patches."""
        patches_BPW = self.norm(self.project(patches_BPD))
        for layer in self.layers:
            tokens_BNW = layer(tokens_BNW, patches_BPW)
        return tokens_BNW
