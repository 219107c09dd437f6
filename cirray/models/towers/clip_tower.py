"""Base of CLIP-like vision towers: an image embedding, alone or with the patches' tokens."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional

from cirray.core.errors import ConfigError
from cirray.data.config import TransformConfig
from cirray.models.quiet import quiet
from cirray.models.towers.hf_blip2 import VisionTower
from cirray.models.towers.preprocessors import write_preprocessor

MARK = "cirray_tokens"
"""Field of the preprocessor file that says which tokens a saved tower gives."""
Tokens = Literal["embedding", "all", "unprojected"]


class ClipTower(VisionTower):
    """Frozen CLIP-like encoder. Token 0 is the image embedding, not normalised.

    `all` adds the patches' tokens in the embedding's space; `unprojected` adds them after the last block, before norm
    and projection; the narrower kind is padded with zeros.
    """

    def __init__(self, model: Any, transform: TransformConfig, tokens: Tokens = "embedding") -> None:
        """Wrap and freeze a model."""
        self.tokens: Tokens = tokens
        super().__init__(model, transform)

    def with_transform(self, transform: TransformConfig) -> "ClipTower":
        """The same tower with another transform of the same size."""
        return type(self)(self.model, transform, self.tokens)

    def with_tokens(self, tokens: Tokens) -> "ClipTower":
        """The same tower giving other tokens."""
        return type(self)(self.model, self.transform, tokens)

    def save(self, folder: str | Path) -> None:
        """Write configuration, weights and the preprocessor file."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._save_model(Path(folder))
        write_preprocessor(folder, self.transform, **{MARK: self.tokens})

    def _save_model(self, folder: Path) -> None:
        with quiet():
            self.model.save_pretrained(str(folder))

    def _tokens(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        if self.tokens == "embedding":
            return self._embedding(pixels_BCHW)[:, None]
        if self.tokens == "all":
            return self._all_tokens(pixels_BCHW)
        embedding_BD, patches_BPW = self._unprojected(pixels_BCHW)
        return torch.cat([_widened(embedding_BD[:, None], self.width), _widened(patches_BPW, self.width)], dim=1)

    def _embedding(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Image embeddings `[B, D]`."""
        raise NotImplementedError

    def _all_tokens(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Image embedding and projected patch tokens `[B, 1 + P, D]`."""
        raise NotImplementedError

    def _unprojected(self, pixels_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Image embedding `[B, D]`, and patch tokens `[B, P, W]` of the last block."""
        raise NotImplementedError


def _widened(tokens_BPW: torch.Tensor, width: int) -> torch.Tensor:
    """Tokens with zeros behind, up to a width."""
    return functional.pad(tokens_BPW, (0, width - tokens_BPW.shape[-1]))


def with_tokens(tower: VisionTower, tokens: Tokens) -> VisionTower:
    """A CLIP tower that gives other tokens. Raises ConfigError for a tower that has no image embedding."""
    if not isinstance(tower, ClipTower):
        raise ConfigError(
            f"clip_tokens={tokens} is for CLIP towers; this {type(tower).__name__} gives all tokens as it is. Leave "
            "the field out."
        )
    return tower.with_tokens(tokens)


def stored_tokens(preprocessor: Mapping[str, Any]) -> Tokens:
    """Which tokens a saved tower gave."""
    tokens: Tokens = preprocessor.get(MARK, "embedding")
    return tokens
