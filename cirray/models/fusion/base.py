"""The interface of a Q-Former's fusion head."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from cirray.models.batch import TextBatch

if TYPE_CHECKING:
    from cirray.models.composed import QFormerRetriever


@dataclass(frozen=True)
class Fused:
    """A normalised query `[B, D]`, and prototype tokens `[B, Q, W]` if the head makes any."""

    query_BD: torch.Tensor
    prototype_BQW: torch.Tensor | None = None


class Fusion(Protocol):
    """A head without weights of its own: it arranges the passes of the retriever's modules."""

    def __call__(self, model: "QFormerRetriever", patches_BPD: torch.Tensor, text: TextBatch) -> Fused:
        """Query of reference patches and text."""
