"""Baselines for `evaluate_retriever`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from cirray.features.store import FeatureLookup


class ImageOnly:
    """Ranks by similarity to the reference image alone: cosine of mean-centred, flattened frozen patch tokens.

    On a gallery of edits of the reference it cannot tell which edit was asked for.
    """

    def __init__(self, mean_PD: torch.Tensor) -> None:
        """Take the mean of the gallery's patches [P, D], which is subtracted everywhere."""
        self._mean_PD = mean_PD

    @classmethod
    def fit(cls, features: FeatureLookup, gallery_ids: Sequence[str], batch: int = 256) -> "ImageOnly":
        """Baseline with the mean of a gallery, read in batches."""
        total_PD, ids = 0.0, list(gallery_ids)
        for start in range(0, len(ids), batch):
            patches_BPD = np.asarray(features.get(ids[start : start + batch]), dtype=np.float32)
            total_PD = total_PD + patches_BPD.sum(axis=0, dtype=np.float64)
        return cls(torch.from_numpy(np.asarray(total_PD / len(ids), dtype=np.float32)))

    def tokenize(self, texts: list[str]) -> list[str]:
        """Texts are ignored."""
        return texts

    def encode_reference(self, patches_BPD: torch.Tensor) -> torch.Tensor:
        """The same vectors as the gallery's: [B, P * D], unit length."""
        return self.encode_gallery(patches_BPD)

    def compose(self, state: torch.Tensor, text: Any) -> torch.Tensor:
        """The reference's vector, whatever the text."""
        return state

    def encode_gallery(self, patches_BPD: torch.Tensor) -> torch.Tensor:
        """Centred, flattened, normalised patches [N, P * D]."""
        return normalize((patches_BPD - self._mean_PD).flatten(1), dim=-1)

    def score(self, query_BD: torch.Tensor, gallery_NQD: torch.Tensor) -> torch.Tensor:
        """Dot products [B, N]."""
        return query_BD @ gallery_NQD.T
