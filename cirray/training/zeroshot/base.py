"""Base of the tasks that train a map from images to pseudo-words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import nn

from cirray.features.store import FeatureLookup
from cirray.losses.output import LossOutput
from cirray.models.batch import Movable
from cirray.models.words.word_map import WordMapRetriever
from cirray.training.gather import Gather
from cirray.training.sampler import BatchSampler
from cirray.training.task import Parted
from cirray.training.zeroshot.config import MappingConfig

BatchT = TypeVar("BatchT", bound=Movable)
VectorsT = TypeVar("VectorsT", bound=Movable)
_BLOCK = 256


@dataclass(frozen=True)
class MapSetup:
    """Input of a task: every image once, with its one caption."""

    retriever: WordMapRetriever
    images: tuple[str, ...]
    captions: tuple[str, ...]
    features: FeatureLookup
    config: MappingConfig
    tokens_MNW: np.ndarray | None = None
    """Tokens found image by image, if the objective distils them."""

    @property
    def settings(self) -> Any:
        """The objective's own settings, of the class that it is registered with."""
        return self.config.objective.settings


class MapTask(Generic[BatchT, VectorsT]):
    """Rows by a sampler, batches whole or in pieces, and saving. Subclasses make a step's batch and the loss.

    The learner gives the vectors that the loss is of, as `Contrasting` says.
    """

    def __init__(self, setup: MapSetup, learner: nn.Module) -> None:
        """Make phi and injection trainable, and cut the rows into epochs.

        Raises ConfigError when the images do not fill a batch.
        """
        setup.retriever.train_mapping()
        self.setup, self._learner = setup, learner
        self._sampler = BatchSampler(len(setup.images), setup.config.batch, setup.config.seed)

    def model(self) -> nn.Module:
        """The learner around the retriever."""
        return self._learner

    def batches(self, start_step: int, rank: int, world: int) -> Iterator[BatchT | Parted]:
        """The calling rank's images (or captions) of step after step, without end."""
        for step in count(start_step):
            rows = self._sampler.rows(step, rank, world)
            batch = self.told(rows, step, rank, world)
            whole = self.setup.config.pieces == 1
            yield self.seen(batch, rows) if whole else Parted(batch, partial(self._pieces, batch, rows))

    def told(self, rows: np.ndarray, step: int, rank: int, world: int) -> BatchT:
        """What is known of a step's rows without their images; a pure function of the seed and the step."""
        raise NotImplementedError

    def seen(self, batch: BatchT, rows: np.ndarray) -> BatchT:
        """The batch with what is read of its rows' images."""
        return batch

    def vectors(self, model: nn.Module, batch: BatchT) -> VectorsT:
        """What the learner gives of a batch, or of a piece of one."""
        found: VectorsT = model(batch)
        return found

    def loss_of(self, vectors: VectorsT, batch: BatchT, gather: Gather) -> LossOutput:
        """The calling rank's loss, of all its vectors."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: BatchT, gather: Gather) -> LossOutput:
        """The calling rank's loss of a whole batch."""
        return self.loss_of(self.vectors(model, batch), batch, gather)

    def _pieces(self, batch: BatchT, rows: np.ndarray) -> Iterator[BatchT]:
        for part in np.array_split(np.arange(len(rows)), min(self.setup.config.pieces, len(rows))):
            begin, end = int(part[0]), int(part[-1]) + 1
            yield self.seen(batch.piece(begin, end, len(rows)), rows[begin:end])

    def patches(self, rows: Sequence[int] | np.ndarray) -> torch.Tensor:
        """The tower's tokens of some rows' images."""
        return torch.from_numpy(self.setup.features.get([self.setup.images[int(row)] for row in rows]))

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the retriever, with its text encoder's adapters trainable."""
        self.setup.retriever.train_composing().save(folder)


@torch.no_grad()
def caption_vectors(retriever: WordMapRetriever, captions: Sequence[str]) -> torch.Tensor:
    """E0 of captions, frozen: `[N, D]` on the CPU, not normalised. Computed once."""
    retriever.eval()
    blocks = [
        retriever.read_captions(captions[begin : begin + _BLOCK]).cpu() for begin in range(0, len(captions), _BLOCK)
    ]
    return torch.cat(blocks)


def places_among_all(rows: int, rank: int, device: torch.device) -> torch.Tensor:
    """Positions of a rank's rows among the gathered ones."""
    return torch.arange(rows, device=device) + rank * rows
