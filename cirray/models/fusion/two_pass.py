"""The fusion of SPRC and PTHA: an image pass that makes prototypes, then a pass without image.

PTHA's hop 2 (docs/PAPERS.md#two-hop-alignment).
"""

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from cirray.models.batch import TextBatch
from cirray.models.fusion.base import Fused
from cirray.models.fusion.config import HEADS

if TYPE_CHECKING:
    from cirray.models.composed import QFormerRetriever


def two_pass(model: "QFormerRetriever", patches_BPD: torch.Tensor, text: TextBatch) -> Fused:
    """Pass A: QF([queries, text]; patches) -> prototypes P. Pass B: QF_text([P, text]) -> summary -> query."""
    return second_pass(model, model.prototypes(patches_BPD, text), text)


def second_pass(model: "QFormerRetriever", prototype_BQW: torch.Tensor, text: TextBatch) -> Fused:
    """Pass B alone, over given prototypes.

    In training the paper pads texts to the full length and attends to the padding too (`text_mask: ones`).
    """
    if model.training and model.config.text_mask == "ones":
        lacking = max(model.config.text_length - text.ids_BT.shape[1], 0)
        ids_BT, mask_BL = functional.pad(text.ids_BT, (0, lacking), value=int(model.tokenizer.pad_token_id)), None
        text = TextBatch(ids_BT, torch.ones_like(ids_BT))
    else:
        mask_BL = torch.cat([text.mask_BT.new_ones(prototype_BQW.shape[:2]), text.mask_BT], dim=1)
    tokens_BLW = torch.cat([prototype_BQW, model.qformer.embed_text(text)], dim=1)
    hidden_BLW = model.qformer.text_only(tokens_BLW, mask_BL, read=model.qformer.queries + 1)
    return Fused(model.project_text(_summary(model, hidden_BLW)), prototype_BQW)


def _summary(model: "QFormerRetriever", hidden_BLW: torch.Tensor) -> torch.Tensor:
    """Mean of the Q fused tokens and [CLS] ("33-mean" for 32 queries), or [CLS] alone, which is the last of them."""
    if model.active_readout == "cls":
        return hidden_BLW[:, -1]
    return hidden_BLW.mean(dim=1)


HEADS.register("two_pass")(lambda settings: two_pass)
