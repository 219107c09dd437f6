"""Stage 1: pseudo-sentences must find their images (L_map) and spread over captions as their own caption does (L_sta).

L_1 = L_map + lambda_sta L_sta, after "two-stage mapping/composing", arXiv 2504.17990
(docs/PAPERS.md#soft-text-alignment); with `alignment=none` and a phi of its shape this is Pic2Word. Only phi and
injection are trained; captions are encoded once.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from cirray.losses.output import LossOutput, weighted_sum
from cirray.losses.soft_text import caption_teacher, soft_text, symmetric_contrast
from cirray.models.batch import Movable
from cirray.models.words.word_map import WordMapRetriever, unit
from cirray.training.gather import Gather
from cirray.training.zeroshot.base import MapSetup, MapTask, caption_vectors, places_among_all
from cirray.training.zeroshot.config import MAPPINGS

_HARDNESS = {"soft": 0.0, "hard": 1.0}


@dataclass(frozen=True)
class MapBatch(Movable):
    """Tower's tokens `patches_BPD` of images, and their captions' frozen vectors `caption_BD`."""

    patches_BPD: torch.Tensor
    caption_BD: torch.Tensor


@dataclass(frozen=True)
class Mapped(Movable):
    """U and v: pseudo-sentences and images `[B, D]`, norm 1."""

    pseudo_BD: torch.Tensor
    image_BD: torch.Tensor


class Mapper(nn.Module):
    """A retriever whose forward pass gives images' vectors and their pseudo-sentences'."""

    def __init__(self, retriever: WordMapRetriever) -> None:
        """Wrap a retriever, trained in place."""
        super().__init__()
        self.retriever = retriever

    def forward(self, batch: MapBatch) -> Mapped:
        """Both vectors of every image."""
        tokens_BNW = self.retriever.encode_reference(batch.patches_BPD)
        image_BD = self.retriever.encode_gallery(batch.patches_BPD)[:, 0]
        return Mapped(self.retriever.pseudo_sentences(tokens_BNW), image_BD)


@MAPPINGS.register("mapping")
class MappingTask(MapTask[MapBatch, Mapped]):
    """L_map, and L_sta in the form that `alignment` names."""

    def __init__(self, setup: MapSetup) -> None:
        """Encode the captions once, if they are used."""
        super().__init__(setup, Mapper(setup.retriever))
        self._captions_ND = unit(caption_vectors(setup.retriever, setup.captions))

    def told(self, rows: np.ndarray, step: int, rank: int, world: int) -> MapBatch:
        """The captions' vectors."""
        return MapBatch(torch.empty(len(rows), 0, 0), self._captions_ND[torch.as_tensor(rows)])

    def seen(self, batch: MapBatch, rows: np.ndarray) -> MapBatch:
        """With the tower's tokens."""
        return replace(batch, patches_BPD=self.patches(rows))

    def loss_of(self, vectors: Mapped, batch: MapBatch, gather: Gather) -> LossOutput:
        """L_1 of this rank's rows against the rows of all ranks."""
        config, pseudo_BD, image_BD = self.setup.settings, vectors.pseudo_BD, vectors.image_BD
        positive_B = places_among_all(len(pseudo_BD), gather.rank, pseudo_BD.device)
        terms = {
            "map": symmetric_contrast(
                pseudo_BD, image_BD, gather.rows(pseudo_BD), gather.rows(image_BD), positive_B, config.temperature
            ).mean()
        }
        if config.alignment != "none":
            terms["sta"] = self._alignment(pseudo_BD, image_BD, batch.caption_BD, positive_B, gather)
        weights = {"map": 1.0, "sta": config.lambda_sta}
        return weighted_sum(terms, {name: weights[name] for name in terms})

    def _alignment(
        self, pseudo_BD: torch.Tensor, image_BD: torch.Tensor, caption_BD: torch.Tensor, positive_B: torch.Tensor,
        gather: Gather,
    ) -> torch.Tensor:  # fmt: skip
        config, captions_ND = self.setup.settings, gather.rows(caption_BD)
        teacher = caption_teacher(
            caption_BD, captions_ND, config.teacher_temperature, image_BD.detach(), config.teacher_mix
        )
        hardness = _HARDNESS.get(config.alignment, config.hardness)
        return soft_text(pseudo_BD, captions_ND, positive_B, teacher, config.student_temperature, hardness).mean()
