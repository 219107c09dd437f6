"""Base of the tasks that train a map from images to pseudo-words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cirray.features.store import FeatureLookup
from cirray.models.words.word_map import WordMapRetriever
from cirray.training.sampler import BatchSampler
from cirray.training.zeroshot.config import MappingConfig

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


class MapTask:
    """Rows by a sampler, and saving. Subclasses make batches and the loss."""

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

    def rows(self, start_step: int, rank: int, world: int) -> Iterator[tuple[int, np.ndarray]]:
        """Step and the calling rank's rows, step after step, without end."""
        for step in count(start_step):
            yield step, self._sampler.rows(step, rank, world)

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
