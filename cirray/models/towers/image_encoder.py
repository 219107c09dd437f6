"""Base of towers around a plain image encoder: whatever it gives becomes tokens `[B, P, D]`."""

from abc import abstractmethod

import torch
from torch import nn

from cirray.core.errors import ArtifactError
from cirray.models.towers.hf_blip2 import VisionTower


class ImageEncoderTower(VisionTower):
    """Frozen image encoder. Its tokens are the last hidden state, class token first, without register tokens.

    Registers are scratch space of the encoder, which its authors drop too. A map of a convolutional encoder is read
    row by row. Every other token stays: DINOv2 and ViT have a class token, SigLIP and ConvNeXt have none.
    """

    @abstractmethod
    def hidden(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """The encoder's last hidden state, `[B, P, D]`, or a map."""

    @property
    @abstractmethod
    def registers(self) -> slice:
        """Where the register tokens are; an empty slice: there are none."""

    def _tokens(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        tokens_BPD = self.hidden(pixels_BCHW.to(next(self.model.parameters()).dtype))
        drop = self.registers
        return torch.cat([tokens_BPD[:, : drop.start], tokens_BPD[:, drop.stop :]], dim=1) if drop.stop else tokens_BPD

    def _sizes(self) -> tuple[int, int, int]:
        """Sizes of what an empty image gives: every architecture computes its own number of tokens.

        Raises ArtifactError when the encoder gives no tokens, or not for images of the transform's size.
        """
        side = self.transform.size
        try:
            with torch.no_grad():
                shape = self._tokens(torch.zeros(1, 3, side, side)).shape
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, AssertionError) as error:
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise ArtifactError(
                f"The {type(self.model).__name__} gives no tokens for images of {side} px ({reason}). Give an image "
                "encoder whose preprocessor makes images of the size that it reads."
            ) from None
        return int(shape[2]), int(shape[1]), side


class NoPooling(nn.Module):
    """Stands in for a pooling layer, whose result no tower reads and whose weights many checkpoints lack."""

    def forward(self, tokens: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        """The tokens as they are."""
        return tokens


def read_as_tokens(output: torch.Tensor, width: int) -> torch.Tensor:
    """Tokens `[B, P, D]` of a last hidden state or a map, `[B, D, H, W]` or `[B, H, W, D]`.

    Raises ValueError for another shape.
    """
    if output.ndim == 4 and width in (output.shape[1], output.shape[3]):
        return (output.flatten(2).transpose(1, 2) if output.shape[1] == width else output.flatten(1, 2)).contiguous()
    if output.ndim != 3:
        raise ValueError(f"its last hidden state has the shape {tuple(output.shape)}")
    return output
