"""Input and output of a retriever's training forward pass."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import torch

from cirray.models.movable import Movable
from cirray.models.text import TextBatch


@dataclass(frozen=True)
class RetrievalBatch(Movable):
    """Triplets of one rank. Keys are integers that are equal exactly for equal images.

    `reverse` holds one text per row; rows without one hold any text and `reverse_mask_B` 0. None when no row has one or
    the objective ignores it. `real_B` is True for rows of `training.real_sources`; None: all are.
    """

    reference_BPD: torch.Tensor
    target_BPD: torch.Tensor
    text: TextBatch
    reference_key_B: torch.Tensor
    target_key_B: torch.Tensor
    weight_B: torch.Tensor
    reverse: TextBatch | None = None
    reverse_mask_B: torch.Tensor | None = None
    real_B: torch.Tensor | None = None
    row_B: torch.Tensor | None = None
    """Row numbers among all training rows."""
    epoch: torch.Tensor | None = None
    """Number of the epoch (scalar, int64)."""
    negative_MPD: torch.Tensor | None = None
    """Hard negatives, equally many of every row (M = B times that), row by row; None: no training row has any."""
    negative_key_M: torch.Tensor | None = None
    """Their keys; -1 fills rows that have fewer."""
    positive_key_BK: torch.Tensor | None = None
    """Keys of each row's further right answers; -1 fills. None: no training row has any."""


@dataclass(frozen=True)
class Wanted:
    """Which optional outputs a training forward pass computes."""

    references: bool = False
    text_only: bool = False
    reverse: bool = False
    prompts: bool = False
    more: frozenset[str] = frozenset()
    """Names of further outputs that only some kinds of retriever make."""

    def __or__(self, other: "Wanted") -> "Wanted":
        """Union of the two."""
        flags = {item.name: getattr(self, item.name) or getattr(other, item.name) for item in fields(self)[:-1]}
        return Wanted(**flags, more=self.more | other.more)


@dataclass(frozen=True)
class RetrieverOutput(Movable):
    """Normalised queries and gallery tokens of the batch, and the optional outputs (else None).

    Prototypes and prompts are means over their tokens, neither projected nor normalised.
    """

    query_BD: torch.Tensor
    target_BQD: torch.Tensor
    temperature: torch.Tensor
    reference_BQD: torch.Tensor | None = None
    negative_MQD: torch.Tensor | None = None
    text_query_BD: torch.Tensor | None = None
    prototype_BW: torch.Tensor | None = None
    reverse_prototype_BW: torch.Tensor | None = None
    prompts_BW: torch.Tensor | None = None
    more: Mapping[str, torch.Tensor] = field(default_factory=dict)
