"""Target-delta matching (VDG): does this text lead to this image? A two-way head on an image-grounded pass.

The pass reads the *target's* patches and the modification text; the head's logits are averaged over positions. Each
matched (image, text) gets one wrong image and one wrong text. Two variants, each the name of an output
(docs/PAPERS.md#target-delta-matching):

`matching`       as released: text positions without [CLS] and padding are read, and nothing attends to [CLS];
                 negatives are drawn by the softmax, without a temperature, of the similarity of *target-grounded*
                 texts with targets, plus 1e-4
`matching_hard`  the queries' positions are read and [CLS] is attended, as BLIP-2 learnt its own head; negatives are
                 drawn by the softmax of the *queries'* similarity over the loss's temperature, wrong images among
                 targets and references, and an equal image or text is never a wrong one

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
_VARIANTS, _UNKNOWN = (MATCHING, MATCHING_HARD), -1.0
_FLOOR = 1e-4
"""Added to every weight by the released code."""


def rows_of(name: str) -> str:
    """Name of the output beside the logits: weights `[3B]`, 0 for a negative that the batch does not hold, else 1."""
    return f"{name}_rows"


@dataclass(frozen=True)
class Negatives:
    """For each row a wrong image and a wrong text, and whether there is one.

    Texts are local row numbers, images too, or, with the number of rows added, those of their references.
    """

    image_B: torch.Tensor
    text_B: torch.Tensor
    has_image_B: torch.Tensor
    has_text_B: torch.Tensor


@dataclass(frozen=True)
class Matcher:
    """A variant: whether it reads text positions, without [CLS], or the queries', and how negatives are chosen."""

    reads_text: bool
    choose: Callable[["QFormerRetriever", RetrievalBatch, "Sides"], Negatives]
    """(retriever, batch, its vectors) -> negatives."""


@dataclass(frozen=True)
class Sides:
    """Vectors of a batch: queries `[B, D]`, and targets and references `[B, Q, D]`, the latter where they are known."""

    query_BD: torch.Tensor
    target_BQD: torch.Tensor
    reference_BQD: torch.Tensor | None = None


class MatchingHead(nn.Module):
    """One linear layer to two logits, 0 not matched, 1 matched; it knows how it was trained and what it is worth."""

    def __init__(self, width: int) -> None:
        """Random weights from the global torch generator."""
        super().__init__()
        self.classifier = nn.Linear(width, 2)
        self.variant_1: torch.Tensor
        self.weight_1: torch.Tensor
        self.register_buffer("variant_1", torch.tensor([float(_VARIANTS.index(MATCHING_HARD))]))
        self.register_buffer("weight_1", torch.tensor([_UNKNOWN]))

    def forward(self, tokens_BTW: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Mean of the logits over the positions that a mask has: `[B, 2]`."""
        weights_BT = mask_BT / mask_BT.sum(dim=1, keepdim=True).clamp_min(1)
        return (self.classifier(tokens_BTW) * weights_BT[..., None].to(tokens_BTW.dtype)).sum(dim=1)

    @property
    def variant(self) -> str:
        """How it was trained, `matching` or `matching_hard`; BLIP-2's own head is of the latter kind."""
        return _VARIANTS[int(self.variant_1)]

    @property
    def chosen_weight(self) -> float | None:
        """What its log-odds count beside the similarity over the temperature, if that was chosen (`choose`)."""
        weight = float(self.weight_1)
        return None if weight == _UNKNOWN else weight

    def trains_as(self, variant: str) -> None:
        """Note that it is trained as a variant from now on; a weight chosen before holds no longer."""
        self.variant_1.fill_(float(_VARIANTS.index(variant)))
        self.weight_1.fill_(_UNKNOWN)

    def choose(self, weight: float) -> None:
        """Note the weight of its log-odds."""
        self.weight_1.fill_(weight)


def matching(model: "QFormerRetriever", name: str, batch: RetrievalBatch, sides: Sides) -> dict[str, torch.Tensor]:
    """Logits of the matched rows, of wrong images with the own texts, and of own images with wrong texts.

    Raises ConfigError for a retriever without a matching head.
    """
    if model.matching_head is None:
        raise ConfigError(
            "Target-delta matching (terms tdm, tdm_hard) needs a matching head, which this retriever lacks. Set "
            "encoder.settings.matching=trained, or start from a checkpoint that has one."
        )
    matcher, text = MATCHERS[name], batch.text
    chosen = matcher.choose(model, batch, sides)
    own_BPD = model.encode_reference(batch.target_BPD)
    others_NPD = torch.cat([own_BPD, model.encode_reference(batch.reference_BPD)])
    ids = torch.cat([text.ids_BT, text.ids_BT, text.ids_BT[chosen.text_B]])
    mask = torch.cat([text.mask_BT, text.mask_BT, text.mask_BT[chosen.text_B]])
    patches = torch.cat([own_BPD, others_NPD[chosen.image_B], own_BPD])
    rows = torch.cat([torch.ones_like(chosen.has_image_B), chosen.has_image_B, chosen.has_text_B])
    return {name: _logits(model, matcher, patches, TextBatch(ids, mask)), rows_of(name): rows.float()}


def log_odds(model: "QFormerRetriever", patches_BPD: torch.Tensor, text: TextBatch) -> torch.Tensor:
    """Log-odds `[B]` that each text leads to the image beside it, by the model's matching head.

    Args:
        model: with a matching head.
        patches_BPD: of the images.
        text: as many texts, on the model's device.
    """
    assert model.matching_head is not None
    matcher, state_BPD = MATCHERS[model.matching_head.variant], model.encode_reference(patches_BPD)
    logits_B2 = _logits(model, matcher, state_BPD, TextBatch(text.ids_BT, text.mask_BT.clone())).float()
    return logits_B2[:, 1] - logits_B2[:, 0]


def _logits(model: "QFormerRetriever", matcher: Matcher, state_BPD: torch.Tensor, text: TextBatch) -> torch.Tensor:
    """The head's logits `[B, 2]`; the mask is changed in place."""
    if matcher.reads_text:
        text.mask_BT[:, 0] = 0
    found = model.qformer.image_and_text(state_BPD, text)
    assert found.text_BTD is not None and model.matching_head is not None
    if matcher.reads_text:
        return model.matching_head(found.text_BTD, text.mask_BT)
    return model.matching_head(found.queries_BQD, text.mask_BT.new_ones(found.queries_BQD.shape[:2]))


@torch.no_grad()
def _choose_released(model: "QFormerRetriever", batch: RetrievalBatch, sides: Sides) -> Negatives:
    grounded_BD = model.compose(model.encode_reference(batch.target_BPD), batch.text)
    image_BB, text_BB = released_weights(score(grounded_BD, sides.target_BQD))
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
def _choose_hard(model: "QFormerRetriever", batch: RetrievalBatch, sides: Sides) -> Negatives:
    known = sides.reference_BQD
    references_BQD = model.encode_gallery(model.encode_reference(batch.reference_BPD)) if known is None else known
    similarity_BN = score(sides.query_BD, torch.cat([sides.target_BQD, references_BQD])) / model.temperature
    return draw_hard(similarity_BN, torch.cat([batch.target_key_B, batch.reference_key_B]), batch.text)


@torch.no_grad()
def draw_hard(similarity_BN: torch.Tensor, key_N: torch.Tensor, text: TextBatch) -> Negatives:
    """Draw a wrong image for every text and a wrong text for every image, similar ones more often.

    A text's own reference is the nearest image that it does not lead to.

    Args:
        similarity_BN: similarity of query i with image j of this rank, over the temperature; targets first, then any.
        key_N: equal exactly for equal images; an equal image is never a wrong one.
        text: an equal text, or one that leads to the same image, is never a wrong one.

    Random numbers are torch's, which the loop seeds by step and rank.
    """
    rows = len(similarity_BN)
    wrong_BN = key_N[:rows, None] != key_N[None, :]
    same_text_BB = (text.ids_BT[:, None] == text.ids_BT[None, :]).all(dim=-1)
    wrong_BN[:, :rows] &= ~same_text_BB
    sides = ((similarity_BN.float(), wrong_BN), (similarity_BN[:, :rows].float().T, wrong_BN[:, :rows]))
    (image_B, has_image_B), (text_B, has_text_B) = (
        (_drawn(_softmax_among(scores, allowed), allowed.any(dim=1)), allowed.any(dim=1)) for scores, allowed in sides
    )
    return Negatives(image_B, text_B, has_image_B, has_text_B)


def _softmax_among(scores_BN: torch.Tensor, allowed_BN: torch.Tensor) -> torch.Tensor:
    """Softmax of a row's allowed columns; zeros where none is."""
    return scores_BN.masked_fill(~allowed_BN, float("-inf")).softmax(dim=1).nan_to_num(0.0)


def _drawn(weights_BN: torch.Tensor, has_B: torch.Tensor) -> torch.Tensor:
    """One column a row, in proportion to its weights; the row itself where it has none."""
    itself_BN = torch.eye(*weights_BN.shape, device=weights_BN.device)
    return torch.multinomial(torch.where(has_B[:, None], weights_BN, itself_BN), 1)[:, 0]


MATCHERS = {MATCHING: Matcher(True, _choose_released), MATCHING_HARD: Matcher(False, _choose_hard)}
"""Name of an output -> variant."""
