"""What the vision towers of CLIP-like backbones share: an image embedding, or all tokens in the embedding's space."""

from pathlib import Path
from typing import Any, Literal

import torch

from cirray.core.errors import ConfigError
from cirray.data.config import TransformConfig
from cirray.models.towers.hf_blip2 import VisionTower, write_preprocessor

Tokens = Literal["embedding", "all"]


class ClipTower(VisionTower):
    """Frozen CLIP-like encoder. Token 0 is the image embedding, not normalised; `all` adds the patches' tokens."""

    def __init__(self, model: Any, transform: TransformConfig, tokens: Tokens = "embedding") -> None:
        """Wrap and freeze a model."""
        self.tokens: Tokens = tokens
        super().__init__(model, transform)

    def with_transform(self, transform: TransformConfig) -> "ClipTower":
        """The same tower behind another transform of the same size."""
        return type(self)(self.model, transform, self.tokens)

    def with_tokens(self, tokens: Tokens) -> "ClipTower":
        """The same tower giving other tokens."""
        return type(self)(self.model, self.transform, tokens)

    def save(self, folder: str | Path) -> None:
        """Write configuration, weights and the preprocessor file."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._save_model(Path(folder))
        write_preprocessor(folder, self.transform, cirray_tokens=self.tokens)

    def _save_model(self, folder: Path) -> None:
        raise NotImplementedError

    def _tokens(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        if self.tokens == "embedding":
            return self._embedding(pixels_BCHW)[:, None]
        return self._all_tokens(pixels_BCHW)

    def _embedding(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Image embeddings `[B, D]`."""
        raise NotImplementedError

    def _all_tokens(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Image embedding and projected patch tokens `[B, 1 + P, D]`."""
        raise NotImplementedError


def with_all_tokens(tower: VisionTower) -> VisionTower:
    """A CLIP tower that gives all tokens.

    Raises:
        ConfigError: for a tower that has no image embedding.
    """
    if not isinstance(tower, ClipTower):
        raise ConfigError("clip_tokens=all is for CLIP towers; BLIP-2's give all tokens as it is. Leave the field out.")
    return tower.with_tokens("all")
