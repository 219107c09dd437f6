"""L_tdm of VDG: does the text lead to this target? Matched pairs against one wrong image and one wrong text.

`tdm` is the released loss, `tdm_hard` ours (docs/PAPERS.md#target-delta-matching). The paper's head is BLIP's own, held
fixed. Here it is part of the retriever (`matching`): trained with it, or loaded from a BLIP-2 checkpoint and held
fixed.
"""

from typing import ClassVar

import torch
from torch.nn import functional

from cirray.models.batch import Wanted
from cirray.models.matching import MATCHING, MATCHING_HARD, rows_of
from cirray.training.terms.base import TERMS, Term, TermInput, TermSetup
from cirray.training.terms.config import MatchingConfig


@TERMS.register("tdm")
class TargetDeltaMatching(Term[MatchingConfig]):
    """Two-way cross-entropy over this rank's matched and mismatched (image, text) pairs, each row's at its weight."""

    reads: ClassVar[str] = MATCHING
    """The output with the logits."""
    wanted: ClassVar[Wanted] = Wanted(more=frozenset({MATCHING}))

    def __init__(self, setup: TermSetup, settings: MatchingConfig) -> None:
        """Tell the retriever's head, if it has one, how it is trained."""
        super().__init__(setup, settings)
        head = getattr(setup.retriever, "matching_head", None)
        if head is not None:
            head.trains_as(self.reads)

    def __call__(self, given: TermInput) -> torch.Tensor:
        """Scalar, in nats."""
        logits, rows = given.output.more[self.reads].float(), given.output.more[rows_of(self.reads)]
        count = len(rows) // 3
        matched = torch.zeros(len(rows), dtype=torch.int64, device=logits.device)
        matched[:count] = 1
        loss = functional.cross_entropy(logits, matched, reduction="none")
        return given.mean(loss, given.batch.weight_B.repeat(3) * rows)


@TERMS.register("tdm_hard")
class HardTargetDeltaMatching(TargetDeltaMatching):
    """The same with the queries' positions read, and negatives, references too, that the retriever ranks high."""

    reads = MATCHING_HARD
    wanted = Wanted(more=frozenset({MATCHING_HARD}))
