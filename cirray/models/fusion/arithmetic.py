"""Heads without weights: image vector, text vector, or the point between them on the arc; no training.

`slerp` walks the great circle from the image's to the text's unit vector (spherical linear interpolation;
docs/PAPERS.md#slerp): q = (sin((1 - a) w) v + sin(a w) t) / sin(w), with w the angle between the two and a the text's
share.
"""

import torch
from torch import nn
from torch.nn import functional

from cirray.models.fusion.config import DUAL_HEADS, HeadConfig, SlerpConfig

_SMALL = 1e-4


class _NoWeights(nn.Module):
    """Base of the heads below."""

    def __init__(self, settings: HeadConfig, width: int) -> None:
        """Nothing to build."""
        super().__init__()


@DUAL_HEADS.register("slerp")
class Slerp(_NoWeights):
    """The point at `text_share` of the arc from image to text; training-free."""

    def __init__(self, settings: SlerpConfig, width: int) -> None:
        """Nothing to build."""
        super().__init__(settings, width)
        self.share = settings.text_share

    def forward(self, image_BD: torch.Tensor, tokens_BPD: torch.Tensor, text_BD: torch.Tensor) -> torch.Tensor:
        """Query `[B, D]`, norm 1; nearly parallel vectors are interpolated on the chord, which is then the arc."""
        image_BD, text_BD = functional.normalize(image_BD, dim=-1), functional.normalize(text_BD, dim=-1)
        cosine_B1 = (image_BD * text_BD).sum(dim=-1, keepdim=True).clamp(-1 + 1e-6, 1 - 1e-6)
        angle_B1 = torch.acos(cosine_B1)
        arc = torch.sin((1 - self.share) * angle_B1) * image_BD + torch.sin(self.share * angle_B1) * text_BD
        chord = (1 - self.share) * image_BD + self.share * text_BD
        return torch.where(torch.sin(angle_B1) < _SMALL, chord, arc / torch.sin(angle_B1))


@DUAL_HEADS.register("text")
class TextAlone(_NoWeights):
    """The text's vector; the image is ignored."""

    def forward(self, image_BD: torch.Tensor, tokens_BPD: torch.Tensor, text_BD: torch.Tensor) -> torch.Tensor:
        """Query `[B, D]`, not normalised."""
        return text_BD


@DUAL_HEADS.register("image")
class ImageAlone(_NoWeights):
    """The reference's vector; the text is ignored."""

    def forward(self, image_BD: torch.Tensor, tokens_BPD: torch.Tensor, text_BD: torch.Tensor) -> torch.Tensor:
        """Query `[B, D]`, not normalised."""
        return image_BD
