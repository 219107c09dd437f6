"""Batches of tensors that move to a device as a whole, and are cut into pieces: texts, and
a retriever's training forward pass, in and out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self, TypeVar

import torch


class Movable:
    """Base of frozen dataclasses whose fields are tensors, other batches, mappings of them, or plain values."""

    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device."""
        return self.mapped(lambda tensor: tensor.to(device))

    def piece(self, begin: int, end: int, rows: int) -> Self:
        """Rows `begin ... end` of its `rows`; tensors with several entries a row keep theirs, others stay."""

        def cut(tensor: torch.Tensor) -> torch.Tensor:
            each = len(tensor) // rows if tensor.ndim else 0
            return tensor[each * begin : each * end] if each else tensor

        return self.mapped(cut)

    def tensors(self) -> list[torch.Tensor]:
        """All tensors, in the order of `mapped`."""
        found = list[torch.Tensor]()
        self.mapped(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
        return found

    def mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """The same batch with other tensors, one after another in a fixed order."""
        own: Any = self
        return type(self)(**{item.name: _changed(getattr(self, item.name), change) for item in fields(own)})


def _changed(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, Mapping):
        return {name: _changed(item, change) for name, item in value.items()}
    if isinstance(value, Movable):
        return value.mapped(change)
    return change(value) if isinstance(value, torch.Tensor) else value


MovableT = TypeVar("MovableT", bound=Movable)


@torch.no_grad()
def joined(pieces: Sequence[MovableT]) -> MovableT:
    """The pieces of a batch as one, without graph; what has no rows is the first one's."""
    columns = zip(*(piece.tensors() for piece in pieces), strict=True)
    whole = iter([torch.cat(column) if column[0].ndim else column[0] for column in columns])
    return pieces[0].mapped(lambda tensor: next(whole))


@dataclass(frozen=True)
class TextBatch(Movable):
    """Token ids `ids_BT` (int64, position 0 is [CLS]) and `mask_BT` (int64, 1 for a token, 0 for padding)."""

    ids_BT: torch.Tensor
    mask_BT: torch.Tensor

    def __len__(self) -> int:
        """Number of texts."""
        return int(self.ids_BT.shape[0])


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
