"""The loss term's interface. An objective is a set of terms with weights; a new term is one file and one `register`."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Generic, TypeVar

import torch

from cirray.core.ids import Ids
from cirray.features.store import FeatureLookup
from cirray.losses.contrastive import contrastive
from cirray.losses.hidden import Hidden
from cirray.losses.output import weighted_mean
from cirray.losses.sums import RowSums, ScoreFunction, row_sums
from cirray.models.base import Retriever
from cirray.models.batch import RetrievalBatch, RetrieverOutput, Wanted
from cirray.models.scoring import score
from cirray.training.config import TrainingConfig
from cirray.training.gather import Gather
from cirray.training.terms.config import TERMS, TermConfig
from cirray.types import Triplet

__all__ = ["TERMS", "Candidates", "Term", "TermConfig", "TermInput", "TermRows", "TermSetup"]

SettingsT = TypeVar("SettingsT", bound=TermConfig)


@dataclass(frozen=True)
class TermRows:
    """What a term can be checked with before there is a retriever."""

    triplets: Sequence[Triplet]
    """All rows that are trained on."""
    image_ids: Ids
    """Their images; a batch's keys (`target_key_B`, ...) are positions in this list."""
    features: FeatureLookup
    config: TrainingConfig
    held_out: frozenset[str] = frozenset()
    """Images of the data set's val and test parts: no term may train on them."""
    every_text: Sequence[Triplet] = ()
    """The rows before texts of one pair were folded (`pair_texts: drawn`); empty: they are `triplets`."""


@dataclass(frozen=True)
class TermSetup(TermRows):
    """Input of a term's preparation, once before the first step; every rank has its own."""

    retriever: Retriever = field(kw_only=True)
    """With its start weights, on the CPU."""


@dataclass(frozen=True)
class Candidates:
    """Candidates of the local rows: tokens of all ranks, the rows' positives and what they must not see, and which of
    all ranks' rows a candidate belongs to.
    """

    tokens_NQD: torch.Tensor
    hidden: Hidden
    row_N: torch.Tensor


@dataclass
class TermInput:
    """One step's values; those shared by terms are computed once."""

    output: RetrieverOutput
    batch: RetrievalBatch
    config: TrainingConfig
    gather: Gather

    @cached_property
    def candidates(self) -> Candidates:
        """Targets of all ranks first, then (improved) their references, then hard negatives; positives are the own
        targets.
        """
        output, batch = self.output, self.batch
        sides = [
            (output.target_BQD, batch.target_key_B), (output.reference_BQD, batch.reference_key_B),
            (output.negative_MQD, batch.negative_key_M),
        ]  # fmt: skip
        found = [
            (self.gather.rows(own), self.gather.rows(key)) for own, key in sides if own is not None and key is not None
        ]
        key_N = torch.cat([key for _, key in found])
        own_N = torch.arange(len(found[0][1]), device=key_N.device)
        row_N = torch.cat([own_N.repeat_interleave(len(key) // len(own_N)) for _, key in found])
        hidden = self.hidden(key_N, further_BK=batch.positive_key_BK)
        return Candidates(torch.cat([own for own, _ in found]), hidden, row_N)

    def hidden(self, key_N: torch.Tensor, **more: torch.Tensor | None) -> Hidden:
        """What the local rows must not see among candidates whose first ones are all ranks' rows in order.

        `more` are further fields of `Hidden`.
        """
        rows = len(self.batch.target_key_B)
        own_B = torch.arange(rows, device=key_N.device) + self.gather.rank * rows
        return Hidden(key_N, own_B, self.config.mask_duplicates, **more)

    def sums(
        self, rows_B: torch.Tensor, candidates_N: torch.Tensor, hidden: Hidden, powers: tuple[float, ...] = (1.0,),
        score: ScoreFunction = score, totals: bool = False,
    ) -> RowSums:  # fmt: skip
        """Sums of the rows' logits over candidates, from the whole matrix or in tiles as `training.chunk` says."""
        tau, chunk = self.output.temperature, self.config.chunk
        return row_sums(score, rows_B, candidates_N, tau, hidden, powers, chunk, totals)

    def contrast(self, query_BD: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
        """Weighted mean over all ranks' rows of InfoNCE against `candidates` (scalar)."""
        found = self.candidates
        sums = self.sums(query_BD, found.tokens_NQD, found.hidden, totals=bool(smoothing))
        return self.mean(contrastive(sums, smoothing))

    def mean(self, loss_B: torch.Tensor, weight_B: torch.Tensor | None = None) -> torch.Tensor:
        """Mean of the rows' losses by weight (the batch's, or others); its mean over ranks is over all rows."""
        weights = self.batch.weight_B if weight_B is None else weight_B
        return weighted_mean(loss_B, weights, self.gather.total(weights.sum()) / self.gather.world)


class Term(ABC, Generic[SettingsT]):
    """One summand of a loss; lives as long as the training."""

    wanted: ClassVar[Wanted] = Wanted()
    """The retriever's optional outputs that the term reads."""
    contrasts: ClassVar[bool] = False
    """Whether it reads the candidates that `training.negatives` names, which may be references too."""

    def __init__(self, setup: TermSetup, settings: SettingsT) -> None:
        """Prepare what does not change between steps."""
        self.setup, self.settings = setup, settings
        self.figures: dict[str, torch.Tensor] = {}
        """Further numbers for the history (scalars), the same names after every call."""

    @classmethod
    def check(cls, rows: TermRows, kind: str, settings: SettingsT) -> None:
        """Refuse rows or a kind of retriever that preparing the term would refuse; by default nothing.

        Called before any weights are loaded, and not again where the term is prepared.

        Raises ConfigError or DataError as preparing it.
        """

    def finish(self, retriever: Retriever) -> None:
        """Check the trained retriever before it is saved; by default nothing.

        Raises ConfigError when it must not be saved.
        """

    @abstractmethod
    def __call__(self, given: TermInput) -> torch.Tensor:
        """The term over this rank's rows (scalar); the mean over ranks is the global batch's."""
