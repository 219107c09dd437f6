"""Heads that ignore one side, for the table's image-only and text-only rows."""

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from cirray.models.batch import TextBatch
from cirray.models.fusion.base import Fused
from cirray.models.fusion.config import HEADS

if TYPE_CHECKING:
    from cirray.models.composed import QFormerRetriever


def image_only(model: "QFormerRetriever", patches_BPD: torch.Tensor, text: TextBatch) -> Fused:
    """The mean of the reference's own gallery tokens; the text is ignored."""
    return Fused(functional.normalize(model.encode_gallery(patches_BPD).mean(dim=1), dim=-1))


def text_only(model: "QFormerRetriever", patches_BPD: torch.Tensor, text: TextBatch) -> Fused:
    """The text-only branch f_m; the image is ignored."""
    return Fused(model.encode_text(text))


HEADS.register("image_only")(lambda settings: image_only)
HEADS.register("text_only")(lambda settings: text_only)
