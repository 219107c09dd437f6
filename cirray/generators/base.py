"""The modification-text generator: pairs in, one `Generation` per pair out, failures as values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from cirray.core.config import Config
from cirray.types import Generation, Pair

SettingsT = TypeVar("SettingsT", bound=Config, contravariant=True)


@dataclass(frozen=True)
class Unwritten:
    """What a captioner or rewriter gives in place of a text that it has not written."""

    reason: str


def told(written: "str | Unwritten", otherwise: str) -> tuple[str, str]:
    """The text, and why it is empty; `otherwise` where only that is known."""
    if isinstance(written, Unwritten):
        return "", written.reason
    return written.strip(), "" if written.strip() else otherwise


class ModificationGenerator(Protocol):
    """Writes the text that turns a pair's reference into its target, and the reverse text."""

    @property
    def digest(self) -> str:
        """Identifies weights and settings; stored with every text."""

    @property
    def prompt_version(self) -> str:
        """Version of the instruction; stored with every text."""

    def generate(self, pairs: Sequence[Pair], images: Any, /) -> list[Generation]:
        """Texts of pairs: same length, same order; a pair that fails has `error` set and no text.

        Args:
            pairs: what to write about.
            images: what the generator reads of their images: a `FeatureLookup`, or a `PictureLookup` where its settings
                have `reads = "pictures"`; None where it reads neither.
        """


@dataclass(frozen=True)
class WriterSetup:
    """What the stage asks of every generator, whatever its settings."""

    device: str = "cpu"
    seed: int = 0
    """Of sampled texts."""
    directions: Literal["both", "forward"] = "both"
    """Texts of a pair; `forward`: no reverse ones."""


class MakeGenerator(Protocol[SettingsT]):
    """Makes a generator, ready to write."""

    def __call__(self, settings: SettingsT, setup: WriterSetup) -> ModificationGenerator:
        """By its settings, of the class that it is registered with.

        Raises:
            ArtifactError: when nothing readable is there.
        """
