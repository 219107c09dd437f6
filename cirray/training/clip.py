"""Pretraining of a small CLIP: images against captions (InfoNCE both ways), with dense heads if cells are known.

The heads read every cell of a scene (object, colour, shape, size) from a patch, from the image embedding and from the
caption embedding, the last two by one linear map: that brings both into one space within some hundred steps, where
contrast alone takes thousands. They are thrown away afterwards.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from cirray.losses.output import LossOutput, weighted_sum
from cirray.losses.soft_text import symmetric_contrast
from cirray.models.batch import Movable
from cirray.models.towers.small_clip import SmallClip
from cirray.training.gather import Gather
from cirray.training.task import SourceTask
from cirray.training.vision import patch_loss

_LOWEST, _HIGHEST = 0.01, 0.2


@dataclass(frozen=True)
class ClipBatch(Movable):
    """uint8 `images_BHWC`, captions as ids and mask, and classes of every cell by head `cells[name]_BP` (or none)."""

    images_BHWC: torch.Tensor
    ids_BT: torch.Tensor
    mask_BT: torch.Tensor
    cells: Mapping[str, torch.Tensor]


class ClipLearner(nn.Module):
    """A CLIP with the throw-away heads of its pretraining."""

    def __init__(self, clip: SmallClip, cells: Mapping[str, int], patches: int, vision_width: int, width: int) -> None:
        """Add heads: one of each name in `cells` (name -> classes) for every cell or patch, and a common space of
        `width`.
        """
        super().__init__()
        self.clip = clip
        self.by_patch = nn.ModuleDict({name: nn.Linear(vision_width, classes) for name, classes in cells.items()})
        self.place = nn.Linear(vision_width, patches)
        self.by_vector = nn.ModuleDict({name: nn.Linear(width, patches * classes) for name, classes in cells.items()})

    def forward(self, batch: ClipBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Image and caption vectors of norm 1 `[B, D]`, and the heads' loss."""
        image_BD, patches_BPW = self.clip.look(batch.images_BHWC)
        text_BD = self.clip.read(batch.ids_BT, batch.mask_BT)
        image_BD, text_BD = F.normalize(image_BD, dim=-1), F.normalize(text_BD, dim=-1)
        return image_BD, text_BD, self._dense(batch, image_BD, text_BD, patches_BPW)

    @property
    def temperature(self) -> torch.Tensor:
        """The learned temperature."""
        return (-self.clip.model.logit_scale).exp().clamp(_LOWEST, _HIGHEST)

    def _dense(
        self, batch: ClipBatch, image_BD: torch.Tensor, text_BD: torch.Tensor, patches_BPW: torch.Tensor
    ) -> torch.Tensor:
        if not batch.cells:
            return image_BD.new_zeros(())
        places_BP = torch.arange(patches_BPW.shape[1], device=patches_BPW.device).expand(len(patches_BPW), -1)
        losses = [patch_loss(self.place(patches_BPW), places_BP)]
        scale = image_BD.shape[1] ** 0.5
        for name, labels_BP in batch.cells.items():
            losses.append(patch_loss(self.by_patch[name](patches_BPW), labels_BP))
            for vector_BD in (image_BD, text_BD):
                logits_BPC = self.by_vector[name](vector_BD * scale).unflatten(1, (labels_BP.shape[1], -1))
                losses.append(patch_loss(logits_BPC, labels_BP))
        return torch.stack(losses).sum()


class ClipTask(SourceTask):
    """Trains a CLIP on batches made from the step number."""

    def __init__(self, learner: ClipLearner, source: Callable[[int, int, int], ClipBatch], dense: float) -> None:
        """Prepare. `source`: (step, rank, world) -> the rank's share of the batch; `dense` weighs the heads."""
        super().__init__(learner, source)
        self._dense = dense

    def loss(self, model: nn.Module, batch: ClipBatch, gather: Gather) -> LossOutput:
        """Contrast over all ranks' rows, and the heads."""
        image_BD, text_BD, dense = model(batch)
        positive_B = torch.arange(len(image_BD), device=image_BD.device) + gather.rank * len(image_BD)
        contrast = symmetric_contrast(
            image_BD, text_BD, gather.rows(image_BD), gather.rows(text_BD), positive_B, self._learner.temperature
        ).mean()
        terms, weights = {"contrast": contrast, "cells": dense}, {"contrast": 1.0, "cells": self._dense}
        return weighted_sum(terms, {name: weight for name, weight in weights.items() if weight})

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the CLIP; the heads are dropped."""
        self._learner.clip.save(folder)
