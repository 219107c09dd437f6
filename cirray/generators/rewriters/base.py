"""The rewriter interface: caption of the reference + modification -> caption of the target.

CIReVL's second step (training-free retrieval: caption, rewrite, search by text; docs/PAPERS.md#cirevl).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from cirray.generators.base import Unwritten
from cirray.generators.rewriters.config import RewriterConfig
from cirray.types import stable_id

SettingsT = TypeVar("SettingsT", bound=RewriterConfig, contravariant=True)


@dataclass(frozen=True)
class Ask:
    """One text to write: the reference's caption, and the change."""

    caption: str
    modification: str


@dataclass(frozen=True)
class RewriterSetup:
    """How rewriters work, whatever their settings; it changes no text."""

    device: str = "cpu"
    batch: int = 32


class Rewriter(Protocol):
    """Writes captions of wanted images; deterministic, so that answers can be cached."""

    @property
    def digest(self) -> str:
        """Identifies weights, instruction and decoding."""

    def rewrite(self, asks: Sequence[Ask]) -> Sequence[str | Unwritten]:
        """One text per question, in order; an empty text is a failure without a reason."""


class MakeRewriter(Protocol[SettingsT]):
    """Makes a rewriter."""

    def __call__(self, settings: SettingsT, setup: RewriterSetup) -> Rewriter:
        """By its settings, of the class that it is registered with.

        Raises ArtifactError when there is nothing to load.
        """


def rewrite_key(ask: Ask, prompt_version: str, digest: str) -> str:
    """Key over caption, modification, instruction and rewriter: equal keys, equal answers."""
    return stable_id("rewrite", ask.caption, ask.modification, prompt_version, digest)
