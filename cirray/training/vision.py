"""Pretraining of the small vision tower: dense heads on patch tokens, or caption words if there are only captions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from cirray.losses.output import LossOutput, weighted_sum
from cirray.models.batch import Movable
from cirray.models.towers.hf_blip2 import VisionTower
from cirray.training.task import SourceTask

IGNORE = -100


@dataclass(frozen=True)
class VisionBatch(Movable):
    """uint8 `images_BHWC` with labels: `cells[name]_BP` class per patch (-100 ignores), or `words_BV` (0/1)."""

    images_BHWC: torch.Tensor
    cells: Mapping[str, torch.Tensor]
    words_BV: torch.Tensor | None = None


class VisionLearner(nn.Module):
    """A vision tower with the throw-away heads of its pretraining.

    The place head (which patch is this?) is always there: without it the frozen tokens lose their position, and
    learning "which cell" stalls. With captions, the patches' colours keep the tokens from holding only caption words.
    """

    def __init__(self, tower: VisionTower, cells: Mapping[str, int], words: int = 0) -> None:
        """Add heads."""
        super().__init__()
        self.tower = tower.trainable()
        self.place = nn.Linear(tower.width, tower.num_tokens - 1)
        self.cells = nn.ModuleDict({name: nn.Linear(tower.width, classes) for name, classes in cells.items()})
        self.words = nn.Linear(tower.width, words) if words else None
        self.colours = nn.Linear(tower.width, 3 * _COLOUR_GRID**2) if words else None

    def forward(self, batch: VisionBatch) -> LossOutput:
        """Sum of all heads' losses."""
        patches_BPD = self.tower(batch.images_BHWC)[:, 1:]
        places_BP = torch.arange(patches_BPD.shape[1], device=patches_BPD.device).expand(len(patches_BPD), -1)
        terms = {"place": patch_loss(self.place(patches_BPD), places_BP)}
        for name, head in self.cells.items():
            terms[name] = patch_loss(head(patches_BPD), batch.cells[name])
        if self.words is not None and self.colours is not None and batch.words_BV is not None:
            scores_BV = torch.logsumexp(self.words(patches_BPD), dim=1) - _LOG_PRIOR
            terms["words"] = F.binary_cross_entropy_with_logits(scores_BV, batch.words_BV) * _WORD_WEIGHT
            terms["colours"] = F.mse_loss(self.colours(patches_BPD), self._patch_colours(batch.images_BHWC))
        return weighted_sum(terms, dict.fromkeys(terms, 1.0))

    def _patch_colours(self, images_BHWC: torch.Tensor) -> torch.Tensor:
        """Mean colour of the grid of squares inside each patch, `[B, P, 3 * grid * grid]`."""
        pixels_BCHW = ((images_BHWC.float() - self.tower.mean_C) / self.tower.std_C).permute(0, 3, 1, 2)
        side = int(self.place.out_features**0.5)
        small_BCHW = F.adaptive_avg_pool2d(pixels_BCHW, side * _COLOUR_GRID)
        return F.unfold(small_BCHW, _COLOUR_GRID, stride=_COLOUR_GRID).transpose(1, 2)


_COLOUR_GRID, _WORD_WEIGHT, _LOG_PRIOR = 4, 20.0, 3.0


class VisionTask(SourceTask):
    """Trains a vision tower on batches made from the step number."""

    def __init__(
        self,
        tower: VisionTower,
        cells: Mapping[str, int],
        source: Callable[[int, int, int], VisionBatch],
        words: int = 0,
    ) -> None:
        """Prepare.

        Args:
            tower: trained in place.
            cells: classes of each per-patch head.
            source: (step, rank, world) -> the rank's share of the batch.
            words: size of the caption vocabulary.
        """
        super().__init__(VisionLearner(tower, cells, words), source)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the tower; the heads are dropped."""
        self._learner.tower.save(folder)

    @torch.inference_mode()
    def accuracy(self, batch: VisionBatch) -> dict[str, float]:
        """Share of right patches of every head, including the place head."""
        learner = self._learner.eval()
        patches_BPD = learner.tower(batch.images_BHWC)[:, 1:]
        places_BP = torch.arange(patches_BPD.shape[1]).expand(len(patches_BPD), -1)
        labels = {"place": places_BP, **{name: batch.cells[name] for name in learner.cells}}
        heads = {"place": learner.place, **dict(learner.cells.items())}
        return {name: _accuracy(heads[name](patches_BPD), labels[name]) for name in labels}


def patch_loss(logits_BPC: torch.Tensor, labels_BP: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of a per-patch head (scalar); patches of label `IGNORE` do not count."""
    return F.cross_entropy(logits_BPC.flatten(0, 1), labels_BP.flatten(), ignore_index=IGNORE)


def _accuracy(logits_BPC: torch.Tensor, labels_BP: torch.Tensor) -> float:
    counted_BP = labels_BP != IGNORE
    return float((logits_BPC.argmax(-1) == labels_BP)[counted_BP].float().mean())


def caption_words(captions: Mapping[str, str], minimum: int = 5, longest: int = 2000) -> list[str]:
    """Words worth predicting: in `minimum` captions or more and in at most nine of ten, most frequent first."""
    counts: dict[str, int] = {}
    for caption in captions.values():
        for word in set(caption.lower().split()):
            counts[word] = counts.get(word, 0) + 1
    usable = [word for word, count in counts.items() if minimum <= count <= 0.9 * len(captions)]
    return sorted(usable, key=lambda word: (-counts[word], word))[:longest]


def word_labels(captions: list[str], words: list[str]) -> torch.Tensor:
    """0/1 matrix of which caption holds which word, `[B, V]`."""
    index = {word: number for number, word in enumerate(words)}
    labels = np.zeros((len(captions), len(words)), dtype=np.float32)
    for row, caption in enumerate(captions):
        labels[row, [index[word] for word in set(caption.lower().split()) if word in index]] = 1
    return torch.from_numpy(labels)
