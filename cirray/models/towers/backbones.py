"""The registry of backbones: one file a backbone, named here.

A backbone brings a frozen vision tower (uint8 pixels -> tokens) and recognises its own files. A dual encoder's also
brings a text encoder (texts -> vectors in the space of its image embeddings).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from cirray.core.errors import ArtifactError, ConfigError
from cirray.core.registry import Registry, load_plugins
from cirray.models.batch import TextBatch
from cirray.models.sources.hub import at_home
from cirray.models.sources.kinds import FETCH, is_absent, what_is
from cirray.models.sources.open_clip_files import is_open_clip_name

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


def _no_text(*given: Any) -> Any:
    raise ConfigError("This backbone encodes images alone; a dual encoder needs one with texts.")


@dataclass(frozen=True)
class Backbone:
    """A backbone, as one file registers it."""

    fits: Callable[[str], bool]
    """Whether a source (folder, hub id) is this backbone's; reads only names and small files."""
    load_tower: Callable[[str, torch.dtype | None], "VisionTower"]
    """Source -> frozen vision tower."""
    load_text: Callable[[str], Any] = _no_text
    """Source -> `TextEncoder` with the source's weights."""
    build_text: Callable[[Mapping[str, Any], Path], Any] = _no_text
    """(description, folder of the tokenizer's files) -> `TextEncoder` with random weights."""
    outline: Callable[[str], "VisionTower"] | None = None
    """Source -> tower of its sizes, for `cirray plan`; called where new tensors have no memory."""
    title: str = ""
    """What a person may name, in a few words; shown where a source belongs to no backbone."""

    is_dual: Callable[[str], bool] | None = None
    """Whether a source holds the texts' side too; None: wherever it fits."""

    @property
    def reads_text(self) -> bool:
        """Whether it has a text encoder, as a dual encoder needs it."""
        return self.load_text is not _no_text


_FIRST, _LAST = ("sentence_transformers",), ("auto",)
"""Backbones that are asked before all others (their files hold another one's), and where no other one fits."""
_MODULES = (
    "auto", "hf_blip2", "hf_clip", "hf_naflex", "hf_siglip", "open_clip", "sentence_transformers", "timm",
)  # fmt: skip
BACKBONES: Registry[Backbone] = Registry(
    "backbone",
    [f"cirray.models.towers.{name}" for name in _MODULES],
)


def backbone_of(source: str | Path) -> Backbone | None:
    """The backbone that a source belongs to, or None."""
    name = backbone_name(source)
    return BACKBONES.get(name) if name else None


def backbone_name(source: str | Path) -> str:
    """Name of the backbone that a source belongs to, or an empty string; those of plug-ins are asked too."""
    load_plugins()
    place = at_home(source)
    if is_open_clip_name(str(place)):
        return "open_clip"
    return next((name for name in _asked() if BACKBONES.get(name).fits(place)), "")


def _asked() -> list[str]:
    """Names of all backbones in the order in which they are asked."""
    return sorted(BACKBONES, key=lambda name: (name not in _FIRST, name in _LAST))


def load_text_encoder(source: str) -> tuple[str, Any]:
    """Backbone and text encoder of a source; an empty name for an unknown backbone, or one without texts.

    Raises ArtifactError when its files cannot be read.
    """
    name = dual_name(source)
    return name, (BACKBONES.get(name).load_text(at_home(source)) if name else None)


def dual_name(source: str) -> str:
    """Name of the backbone that reads images and texts of a source; empty where there is none."""
    found = [name for name in _asked() if (made := BACKBONES.get(name)).is_dual and made.is_dual(at_home(source))]
    name = next(iter(found), "") or backbone_name(source)
    return name if name and BACKBONES.get(name).reads_text else ""


def no_tower(source: str | Path) -> ArtifactError:
    """The error for a source that is no backbone's: what is there, and what would be accepted."""
    known = titles(BACKBONES.get(name) for name in BACKBONES)
    what = f"No vision tower could be read from {str(source)!r}: {what_is(source)}"
    return ArtifactError(f"{what}. {FETCH if is_absent(source) else f'Give {known}.'}")


def no_texts(field: str, source: str, more: str = "") -> ConfigError:
    """The error for a source without the text encoder it is to give: what is there, and what `field` would accept."""
    known = titles(BACKBONES.get(name) for name in BACKBONES if BACKBONES.get(name).reads_text)
    what = f"{field} {source!r} is no encoder of images and texts: {what_is(source)}"
    return ConfigError(f"{what}. {FETCH if is_absent(source) else f'Give {more}{known}.'}")


def titles(backbones: Iterable[Backbone]) -> str:
    """What a person may name in place of a source that is none."""
    return "; or ".join(backbone.title for backbone in backbones if backbone.title)
