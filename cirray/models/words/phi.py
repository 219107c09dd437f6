"""phi: an image embedding becomes the token(s) of a pseudo-word. Linear, activation, dropout, twice, then Linear.

The shape is SEARLE's (docs/PAPERS.md#searle) or, by its configuration, Pic2Word's (docs/PAPERS.md#pic2word). The output
starts at the mean norm of the word embeddings, which the text encoder is used to.
"""

import torch
from torch import nn
from torch.nn import functional

from cirray.models.words.config import PhiConfig


class Phi(nn.Module):
    """Embeddings `[B, D]` -> tokens `[B, N, W]`."""

    def __init__(self, config: PhiConfig, embed_dim: int, width: int, tokens: int, norm: float) -> None:
        """Random weights from the global torch generator."""
        super().__init__()
        self.config, self.tokens = config, tokens
        hidden = config.hidden or 4 * embed_dim
        acting = nn.GELU if config.activation == "gelu" else nn.ReLU
        self.layers = nn.Sequential(
            nn.Linear(embed_dim, hidden), acting(), nn.Dropout(config.dropout),
            nn.Linear(hidden, hidden), acting(), nn.Dropout(config.dropout),
            nn.Linear(hidden, tokens * width),
        )  # fmt: skip
        self._scale(embed_dim, norm)

    def forward(self, image_BD: torch.Tensor) -> torch.Tensor:
        """Tokens of image embeddings, or (text-only training) of text embeddings in their place."""
        tokens_BM: torch.Tensor = self.layers(self.scaled(image_BD))
        return tokens_BM.unflatten(1, (self.tokens, -1))

    def scaled(self, image_BD: torch.Tensor) -> torch.Tensor:
        """Embeddings at the norm that phi reads."""
        if self.config.reads == "raw":
            return image_BD
        return functional.normalize(image_BD, dim=-1) * image_BD.shape[1] ** 0.5

    @torch.no_grad()
    def _scale(self, embed_dim: int, norm: float) -> None:
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.bias)
        self.eval()
        mean = self(torch.randn(256, embed_dim)).norm(dim=-1).mean()
        last.weight.mul_(norm / mean.clamp_min(1e-6))
        self.train()
