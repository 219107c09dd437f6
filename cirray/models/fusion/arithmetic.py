"""Heads without weights: the sum of image and text vector, the point between them on the arc, or one of the two.

`sum` is q = n((1 - a) v + a t), with a the text's share (CLIP4CIR, docs/PAPERS.md#clip4cir: v + t). `slerp` walks the
great circle from the image's to the text's unit vector (spherical linear interpolation; docs/PAPERS.md#slerp):
q = (sin((1 - a) w) v + sin(a w) t) / sin(w), with w the angle between the two.
"""

import torch
from torch import nn
from torch.nn import functional

from cirray.core.errors import ConfigError
from cirray.models.fusion.config import DUAL_HEADS, JOINT, HeadConfig, SlerpConfig, SumConfig

_SMALL = 1e-4


class _NoWeights(nn.Module):
    """Base of the heads below."""

    def __init__(self, settings: HeadConfig, width: int) -> None:
        """Nothing to build."""
        super().__init__()


class Weighted(_NoWeights):
    """Base of heads between image and text, of which a query may say how much the text counts."""

    def __init__(self, settings: SumConfig | SlerpConfig, width: int) -> None:
        """Keep the settings."""
        super().__init__(settings, width)
        self.settings, self.share = settings, settings.text_share

    def forward(
        self, image_BD: torch.Tensor, tokens_BPD: torch.Tensor, text_BD: torch.Tensor,
        share_B: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Query `[B, D]`, not normalised; `share_B` is each query's share of the text, in place of the settings'."""
        share = image_BD.new_full((1, 1), self.share) if share_B is None else share_B[:, None].to(image_BD)
        return self.between(image_BD, text_BD, share)

    def between(self, image_BD: torch.Tensor, text_BD: torch.Tensor, share_B1: torch.Tensor) -> torch.Tensor:
        """The point at a share of the way from image to text."""
        raise NotImplementedError


@DUAL_HEADS.register("sum")
class Sum(Weighted):
    """The weighted sum, doubled: with a share of 0.5 exactly image + text."""

    settings: SumConfig

    def between(self, image_BD: torch.Tensor, text_BD: torch.Tensor, share_B1: torch.Tensor) -> torch.Tensor:
        """See `Weighted`."""
        if self.settings.unit:
            image_BD, text_BD = functional.normalize(image_BD, dim=-1), functional.normalize(text_BD, dim=-1)
        return (2 - 2 * share_B1) * image_BD + 2 * share_B1 * text_BD


@DUAL_HEADS.register("slerp")
class Slerp(Weighted):
    """The point at a share of the arc from image to text."""

    def between(self, image_BD: torch.Tensor, text_BD: torch.Tensor, share_B1: torch.Tensor) -> torch.Tensor:
        """See `Weighted`; nearly parallel vectors are interpolated on the chord, which is then the arc."""
        image_BD, text_BD = functional.normalize(image_BD, dim=-1), functional.normalize(text_BD, dim=-1)
        cosine_B1 = (image_BD * text_BD).sum(dim=-1, keepdim=True).clamp(-1 + 1e-6, 1 - 1e-6)
        angle_B1 = torch.acos(cosine_B1)
        arc = torch.sin((1 - share_B1) * angle_B1) * image_BD + torch.sin(share_B1 * angle_B1) * text_BD
        chord = (1 - share_B1) * image_BD + share_B1 * text_BD
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


@DUAL_HEADS.register(JOINT)
class Joint(_NoWeights):
    """In the place of a head where the encoder reads picture and text together."""

    def forward(self, image_BD: torch.Tensor, tokens_BPD: torch.Tensor, text_BD: torch.Tensor) -> torch.Tensor:
        """Refuse vectors. Raises ConfigError: always."""
        raise no_pictures()


def no_pictures() -> ConfigError:
    """The error for the composition `joint` where only vectors of pictures are at hand."""
    return ConfigError(
        "The composition 'joint' reads the pictures themselves, and here are only their vectors. Use sum, slerp or, "
        "trained, combiner (encoder.settings.fusion)."
    )
