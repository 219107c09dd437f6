"""Heads of dual encoders: image vector and text vector to one query. A new head is one class.

`combiner` after Baldrati et al. (CLIP4CIR, 2022; docs/PAPERS.md#clip4cir): q = n(A + s t + (1 - s) v);
`cross_attention` lets the text vector read the image's tokens; `tirg` and the heads without weights have own files.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from cirray.core.errors import ConfigError
from cirray.models.fusion.config import DUAL_HEADS, CombinerConfig, CrossAttentionConfig

MakeHead = Callable[[Any, int], nn.Module]
"""(the head's own settings, width of the common space) -> the head."""


@DUAL_HEADS.register("combiner")
class Combiner(nn.Module):
    """A + s text + (1 - s) image; A and the gate s in (0, 1) are computed from both projected vectors."""

    def __init__(self, settings: CombinerConfig, width: int) -> None:
        """Random weights from the global torch generator."""
        super().__init__()
        projected, hidden = settings.projection_factor * width, settings.hidden_factor * width
        self.text_side, self.image_side = nn.Linear(width, projected), nn.Linear(width, projected)
        self.mix_hidden, self.mix = nn.Linear(2 * projected, hidden), nn.Linear(hidden, width)
        self.gate_hidden, self.gate = nn.Linear(2 * projected, hidden), nn.Linear(hidden, 1)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, image_BD: torch.Tensor, tokens_BPD: torch.Tensor, text_BD: torch.Tensor) -> torch.Tensor:
        """Query `[B, D]`, not normalised."""
        mixed_BD, share_B1 = self.parts(image_BD, text_BD)
        return mixed_BD + share_B1 * text_BD + (1 - share_B1) * image_BD

    def parts(self, image_BD: torch.Tensor, text_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A `[B, D]` and s `[B, 1]`."""
        sides = (self.text_side(text_BD), self.image_side(image_BD))
        both = torch.cat([self.dropout(functional.relu(side)) for side in sides], dim=-1)
        mixed = self.mix(self.dropout(functional.relu(self.mix_hidden(both))))
        return mixed, torch.sigmoid(self.gate(self.dropout(functional.relu(self.gate_hidden(both)))))


@DUAL_HEADS.register("cross_attention")
class CrossAttention(nn.Module):
    """The text vector attends to the image's tokens; the result is added to the sum. Starts as the sum."""

    def __init__(self, settings: CrossAttentionConfig, width: int) -> None:
        """Random weights from the global torch generator; the last layer starts at zero.

        Raises ConfigError when the heads do not divide the width.
        """
        super().__init__()
        if width % settings.heads:
            raise ConfigError(f"fusion.settings.heads {settings.heads} does not divide the common width {width}.")
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                width, settings.heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(settings.layers)
        )
        self.norm_in, self.norm_out, self.out = nn.LayerNorm(width), nn.LayerNorm(width), nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, image_BD: torch.Tensor, tokens_BPD: torch.Tensor, text_BD: torch.Tensor) -> torch.Tensor:
        """Query `[B, D]`, not normalised."""
        state_B1D, memory_BPD = text_BD[:, None], self.norm_in(tokens_BPD)
        for layer in self.layers:
            state_B1D = layer(state_B1D, memory_BPD)
        return image_BD + text_BD + self.out(self.norm_out(state_B1D[:, 0]))
