"""The registry of dual-encoder backbones: one file a backbone, named here.

A backbone brings a frozen vision tower (uint8 pixels -> image embedding or projected tokens) and a text encoder (texts
-> vectors in the same space), and recognises its own files.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from cirray.core.registry import Registry
from cirray.models.sources.files import at_home
from cirray.models.text import TextBatch

if TYPE_CHECKING:
    from cirray.models.towers.hf_blip2 import VisionTower


class TextEncoder(Protocol):
    """A module that turns texts into vectors of the image embeddings' space."""

    embed_dim: int

    def __call__(self, text: TextBatch) -> torch.Tensor:
        """Vectors `[B, D]`, not normalised."""

    def tokenize(self, texts: Sequence[str], length: int) -> TextBatch:
        """Token ids, cut at `length`."""

    def description(self) -> dict[str, Any]:
        """Plain values from which `build_text` makes the same module, without its weights."""

    def vocabulary(self) -> Mapping[str, int]:
        """Token -> id."""

    def save_words(self, folder: Path) -> None:
        """Write the tokenizer's files."""


@dataclass(frozen=True)
class Backbone:
    """A backbone, as one file registers it."""

    fits: Callable[[str], bool]
    """Whether a source (folder, hub id) is this backbone's; reads only names and small files."""
    load_tower: Callable[[str, torch.dtype | None], "VisionTower"]
    """Source -> frozen vision tower."""
    load_text: Callable[[str], Any]
    """Source -> `TextEncoder` with the source's weights."""
    build_text: Callable[[Mapping[str, Any], Path], Any]
    """(description, folder of the tokenizer's files) -> `TextEncoder` with random weights."""


BACKBONES: Registry[Backbone] = Registry(
    "backbone", [f"cirray.models.towers.{name}" for name in ("hf_clip", "open_clip")]
)


def backbone_of(source: str) -> Backbone | None:
    """The dual-encoder backbone that a source belongs to, or None (BLIP-2)."""
    name = backbone_name(source)
    return BACKBONES.get(name) if name else None


def backbone_name(source: str) -> str:
    """Name of the backbone that a source belongs to, or an empty string."""
    place = at_home(source)
    return next((name for name in BACKBONES if BACKBONES.get(name).fits(place)), "")


def load_text_encoder(source: str) -> tuple[str, Any]:
    """Backbone and text encoder of a source; an empty name for an unknown backbone.

    Raises:
        ArtifactError: when its files cannot be read.
    """
    name = backbone_name(source)
    return name, (BACKBONES.get(name).load_text(at_home(source)) if name else None)
