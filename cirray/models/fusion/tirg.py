"""TIRG's head: the reference passes a gate, and a residual adds the change.

Vo et al., CVPR 2019 (docs/PAPERS.md#tirg): q = w_g sigmoid(gate([v, t])) v + w_r residual([v, t]), scaled by a learned
factor. The paper trains it with ResNet-18 and an LSTM; here it is over any frozen tower and text encoder.
"""

from typing import Literal

import torch
from torch import nn

from cirray.models.fusion.config import DUAL_HEADS, TirgConfig


@DUAL_HEADS.register("tirg")
class Tirg(nn.Module):
    """Gate and residual over both vectors; the weights w start at 1 and 10."""

    def __init__(self, settings: TirgConfig, width: int) -> None:
        """Random weights from the global torch generator."""
        super().__init__()
        both = 2 * width
        self.gate = nn.Sequential(_norm(settings.norm, both), nn.ReLU(), nn.Linear(both, width))
        self.residual = nn.Sequential(
            _norm(settings.norm, both), nn.ReLU(), nn.Linear(both, both), nn.ReLU(), nn.Linear(both, width)
        )
        self.weights = nn.Parameter(torch.tensor([1.0, 10.0]))
        self.scale = nn.Parameter(torch.tensor([4.0]))

    def forward(self, image_BD: torch.Tensor, tokens_BPD: torch.Tensor, text_BD: torch.Tensor) -> torch.Tensor:
        """Query `[B, D]`, not normalised."""
        both = torch.cat([image_BD, text_BD], dim=-1)
        kept, added = torch.sigmoid(self.gate(both)) * image_BD, self.residual(both)
        return self.scale * (self.weights[0] * kept + self.weights[1] * added)


def _norm(kind: Literal["layer", "batch"], width: int) -> nn.Module:
    """The paper's batch norm, or layer norm, with which a row's query does not depend on its batch."""
    return nn.BatchNorm1d(width) if kind == "batch" else nn.LayerNorm(width)
