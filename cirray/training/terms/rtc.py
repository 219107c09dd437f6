"""The text-only term L_m2t: text and learned prompts against the same images (docs/PAPERS.md#text-only-branch)."""

import torch

from cirray.models.batch import Wanted
from cirray.training.terms.base import TERMS, Term, TermInput
from cirray.training.terms.config import TermConfig


@TERMS.register("rtc")
class TextContrast(Term[TermConfig]):
    """InfoNCE of the text-only branch f_m, without label smoothing (SPRC's relative text contrast)."""

    wanted, contrasts = Wanted(text_only=True), True

    def __call__(self, given: TermInput) -> torch.Tensor:
        """Scalar, in nats."""
        assert given.output.text_query_BD is not None
        return given.contrast(given.output.text_query_BD)
