"""Target-delta matching (VDG, section 3): does this text lead to this image? A two-way head on an image-grounded pass.

The pass reads the *target's* patches and the modification text; the head reads the text positions without [CLS] and
padding, and their logits are averaged. For each matched (image, text) two others are made: one wrong image, one wrong
text, drawn in proportion to the softmax of target-delta similarity. Everything is of the calling rank's rows: weights
and indices are local, so that a rank's hard negatives are its own (the released code mixes the two up).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from cirray.models.text import TextBatch

MATCHING = "matching"
"""Name of the output in `Wanted.more` and `RetrieverOutput.more`: logits `[3B, 2]`, matched rows first."""
MATCHING_ROWS = "matching_rows"
"""Weights `[3B]`: 0 for a negative that does not exist in the batch, else 1."""


@dataclass(frozen=True)
class Negatives:
    """For each row a wrong image and a wrong text (local row numbers), and whether there is any to choose."""

    image_B: torch.Tensor
    text_B: torch.Tensor
    has_image_B: torch.Tensor
    has_text_B: torch.Tensor


class MatchingHead(nn.Module):
    """One linear layer to two logits: 0 not matched, 1 matched."""

    def __init__(self, width: int) -> None:
        """Random weights from the global torch generator."""
        super().__init__()
        self.classifier = nn.Linear(width, 2)

    def forward(self, text_BTW: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Mean of the logits over the text's own positions: `[B, 2]`.

        Args:
            text_BTW: outputs of the text positions, [CLS] first.
            mask_BT: 1 for tokens, 0 for padding.
        """
        words_BT = mask_BT.clone()
        words_BT[:, 0] = 0
        weights_BT = words_BT / words_BT.sum(dim=1, keepdim=True).clamp_min(1)
        return (self.classifier(text_BTW) * weights_BT[..., None].to(text_BTW.dtype)).sum(dim=1)


def matching_pass(
    read: Callable[[torch.Tensor, TextBatch], torch.Tensor],
    head: MatchingHead,
    targets_BPD: torch.Tensor,
    text: TextBatch,
    chosen: Negatives,
) -> dict[str, torch.Tensor]:
    """Logits of the matched rows, of wrong images with the own texts, and of own images with wrong texts.

    Args:
        read: image-grounded pass, (patches, text) -> outputs of the text positions.
        head: the two-way head.
        targets_BPD: patches of the targets.
        text: modification texts.
        chosen: which rows stand in.
    """
    patches = torch.cat([targets_BPD, targets_BPD[chosen.image_B], targets_BPD])
    ids = torch.cat([text.ids_BT, text.ids_BT, text.ids_BT[chosen.text_B]])
    mask = torch.cat([text.mask_BT, text.mask_BT, text.mask_BT[chosen.text_B]])
    rows = torch.cat([torch.ones_like(chosen.has_image_B), chosen.has_image_B, chosen.has_text_B])
    return {MATCHING: head(read(patches, TextBatch(ids, mask)), mask), MATCHING_ROWS: rows.float()}


@torch.no_grad()
def draw_negatives(similarity_BB: torch.Tensor, target_key_B: torch.Tensor, text: TextBatch) -> Negatives:
    """A wrong image for every text and a wrong text for every image, likely ones more often.

    Args:
        similarity_BB: similarity of query i with target j of this rank, over the temperature.
        target_key_B: equal exactly for equal images; an equal image is never a wrong one.
        text: an equal text, or one that leads to the same image, is never a wrong one.

    Randomness is torch's global generator, which the loop seeds by step and rank.
    """
    same_image_BB = target_key_B[:, None] == target_key_B[None, :]
    same_text_BB = (text.ids_BT[:, None] == text.ids_BT[None, :]).all(dim=-1)
    wrong_BB = ~(same_image_BB | same_text_BB)
    image_B, has_image_B = _draw(similarity_BB.float(), wrong_BB)
    text_B, has_text_B = _draw(similarity_BB.float().T, wrong_BB)
    return Negatives(image_B, text_B, has_image_B, has_text_B)


def _draw(scores_BB: torch.Tensor, allowed_BB: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One allowed column a row, in proportion to its softmax; the row itself where nothing is allowed."""
    has_B = allowed_BB.any(dim=1)
    itself_BB = torch.eye(len(scores_BB), dtype=torch.bool, device=scores_BB.device)
    open_BB = allowed_BB | (itself_BB & ~has_B[:, None])
    probability_BB = scores_BB.masked_fill(~open_BB, float("-inf")).softmax(dim=1)
    return torch.multinomial(probability_BB, 1)[:, 0], has_B
