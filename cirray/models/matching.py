"""Target-delta matching (VDG): does this text lead to this image? A two-way head on an image-grounded pass.

The pass reads the *target's* patches and the modification text; the head reads the text positions without [CLS] and
padding, and their logits are averaged. Each matched (image, text) gets one wrong image and one wrong text. Two
variants, each the name of an output (docs/PAPERS.md#target-delta-matching):

`matching`       as released: nothing attends to [CLS]; negatives are drawn by the softmax, without a temperature, of
                 the similarity of *target-grounded* texts with targets, plus 1e-4
`matching_hard`  [CLS] is attended, as BLIP-2 learnt its own head; negatives are drawn by the softmax of the *queries'*
                 similarity with targets over the loss's temperature, and an equal image or text is never a wrong one

Weights and indices are local: a rank's negatives are its own (the released code reads the first rank's columns).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from cirray.core.errors import ConfigError
from cirray.models.batch import RetrievalBatch, TextBatch
from cirray.models.scoring import score

if TYPE_CHECKING:
    from cirray.models.composed import QFormerRetriever

MATCHING, MATCHING_HARD = "matching", "matching_hard"
"""Names of outputs in `Wanted.more` and `RetrieverOutput.more`: logits `[3B, 2]`, matched rows first."""
_FLOOR = 1e-4
"""Added to every weight by the released code."""


def rows_of(name: str) -> str:
    """Name of the output beside the logits: weights `[3B]`, 0 for a negative that the batch does not hold, else 1."""
    return f"{name}_rows"


@dataclass(frozen=True)
class Negatives:
    """For each row a wrong image and a wrong text (local row numbers), and whether there is one."""

    image_B: torch.Tensor
    text_B: torch.Tensor
    has_image_B: torch.Tensor
    has_text_B: torch.Tensor


@dataclass(frozen=True)
class Matcher:
    """A variant: whether [CLS] is hidden from attention, and how negatives are chosen."""

    hides_cls: bool
    choose: Callable[["QFormerRetriever", RetrievalBatch, torch.Tensor, torch.Tensor], Negatives]
    """(retriever, batch, queries `[B, D]`, targets `[B, Q, D]`) -> negatives."""


class MatchingHead(nn.Module):
    """One linear layer to two logits: 0 not matched, 1 matched."""

    def __init__(self, width: int) -> None:
        """Random weights from the global torch generator."""
        super().__init__()
        self.classifier = nn.Linear(width, 2)

    def forward(self, text_BTW: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Mean of the logits over the text's own positions: `[B, 2]`."""
        words_BT = mask_BT.clone()
        words_BT[:, 0] = 0
        weights_BT = words_BT / words_BT.sum(dim=1, keepdim=True).clamp_min(1)
        return (self.classifier(text_BTW) * weights_BT[..., None].to(text_BTW.dtype)).sum(dim=1)


def matching(
    model: "QFormerRetriever", name: str, batch: RetrievalBatch, query_BD: torch.Tensor, targets_BQD: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Logits of the matched rows, of wrong images with the own texts, and of own images with wrong texts.

    Raises ConfigError for a retriever without a matching head.
    """
    if model.matching_head is None:
        raise ConfigError(
            "Target-delta matching (terms tdm, tdm_hard) needs a matching head, which this retriever lacks. Set "
            "encoder.settings.matching=trained, or start from a checkpoint that has one."
        )
    matcher, text = MATCHERS[name], batch.text
    chosen = matcher.choose(model, batch, query_BD, targets_BQD)
    own_BPD = model.encode_reference(batch.target_BPD)
    ids = torch.cat([text.ids_BT, text.ids_BT, text.ids_BT[chosen.text_B]])
    mask = torch.cat([text.mask_BT, text.mask_BT, text.mask_BT[chosen.text_B]])
    patches = torch.cat([own_BPD, own_BPD[chosen.image_B], own_BPD])
    rows = torch.cat([torch.ones_like(chosen.has_image_B), chosen.has_image_B, chosen.has_text_B])
    return {name: _logits(model, matcher, patches, TextBatch(ids, mask)), rows_of(name): rows.float()}


def matched(model: "QFormerRetriever", name: str, patches_BPD: torch.Tensor, text: TextBatch) -> torch.Tensor:
    """Probability `[B]` that each text leads to the image beside it, by a head that was trained as the variant `name`.

    Args:
        model: with a matching head.
        name: `matching` or `matching_hard`.
        patches_BPD: of the images.
        text: as many texts, on the model's device.
    """
    state_BPD = model.encode_reference(patches_BPD)
    return _logits(model, MATCHERS[name], state_BPD, TextBatch(text.ids_BT, text.mask_BT.clone())).softmax(dim=1)[:, 1]


def _logits(model: "QFormerRetriever", matcher: Matcher, state_BPD: torch.Tensor, text: TextBatch) -> torch.Tensor:
    """The head's logits `[B, 2]`; the mask is changed in place."""
    if matcher.hides_cls:
        text.mask_BT[:, 0] = 0
    words_BTW = model.qformer.image_and_text(state_BPD, text).text_BTD
    assert words_BTW is not None and model.matching_head is not None
    return model.matching_head(words_BTW, text.mask_BT)


@torch.no_grad()
def _choose_released(
    model: "QFormerRetriever", batch: RetrievalBatch, query_BD: torch.Tensor, targets_BQD: torch.Tensor
) -> Negatives:
    grounded_BD = model.compose(model.encode_reference(batch.target_BPD), batch.text)
    image_BB, text_BB = released_weights(score(grounded_BD, targets_BQD))
    has_B = image_BB.any(dim=1)
    return Negatives(_drawn(image_BB, has_B), _drawn(text_BB, has_B), has_B, has_B)


def released_weights(similarity_BB: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The released code's weights of wrong images and of wrong texts, a row each: softmax + 1e-4, the own one 0.

    Args:
        similarity_BB: of the text of row i, read with its target, with the target of row j; no temperature.

    Images are weighted by the similarity of the row's own *image* with the texts, texts by that of its own text with
    the images, as released.
    """
    own_BB = torch.eye(len(similarity_BB), dtype=torch.bool, device=similarity_BB.device)
    sides = (similarity_BB.float().T, similarity_BB.float())
    image_BB, text_BB = ((side.softmax(dim=1) + _FLOOR).masked_fill(own_BB, 0.0) for side in sides)
    return image_BB, text_BB


@torch.no_grad()
def _choose_hard(
    model: "QFormerRetriever", batch: RetrievalBatch, query_BD: torch.Tensor, targets_BQD: torch.Tensor
) -> Negatives:
    return draw_hard(score(query_BD, targets_BQD) / model.temperature, batch.target_key_B, batch.text)


@torch.no_grad()
def draw_hard(similarity_BB: torch.Tensor, target_key_B: torch.Tensor, text: TextBatch) -> Negatives:
    """Draw a wrong image for every text and a wrong text for every image, similar ones more often.

    Args:
        similarity_BB: similarity of query i with target j of this rank, over the temperature.
        target_key_B: equal exactly for equal images; an equal image is never a wrong one.
        text: an equal text, or one that leads to the same image, is never a wrong one.

    Random numbers are torch's, which the loop seeds by step and rank.
    """
    same_image_BB = target_key_B[:, None] == target_key_B[None, :]
    same_text_BB = (text.ids_BT[:, None] == text.ids_BT[None, :]).all(dim=-1)
    wrong_BB = ~(same_image_BB | same_text_BB)
    has_B = wrong_BB.any(dim=1)
    image_B, text_B = (
        _drawn(_softmax_among(side, wrong_BB), has_B) for side in (similarity_BB.float(), similarity_BB.float().T)
    )
    return Negatives(image_B, text_B, has_B, has_B)


def _softmax_among(scores_BB: torch.Tensor, allowed_BB: torch.Tensor) -> torch.Tensor:
    """Softmax of a row's allowed columns; zeros where none is."""
    return scores_BB.masked_fill(~allowed_BB, float("-inf")).softmax(dim=1).nan_to_num(0.0)


def _drawn(weights_BB: torch.Tensor, has_B: torch.Tensor) -> torch.Tensor:
    """One column a row, in proportion to its weights; the row itself where it has none."""
    itself_BB = torch.eye(len(weights_BB), device=weights_BB.device)
    return torch.multinomial(torch.where(has_B[:, None], weights_BB, itself_BB), 1)[:, 0]


MATCHERS = {MATCHING: Matcher(True, _choose_released), MATCHING_HARD: Matcher(False, _choose_hard)}
"""Name of an output -> variant."""
