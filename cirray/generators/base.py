"""The modification-text generator: pairs in, one `Generation` per pair out, failures as values."""

from collections.abc import Sequence
from typing import Protocol

from cirray.features.store import FeatureLookup
from cirray.types import Generation, Pair


class ModificationGenerator(Protocol):
    """Writes the text that turns a pair's reference into its target, and the reverse text."""

    @property
    def digest(self) -> str:
        """Identifies weights and settings; stored with every text."""

    @property
    def prompt_version(self) -> str:
        """Version of the instruction; stored with every text."""

    def generate(self, pairs: Sequence[Pair], features: FeatureLookup) -> list[Generation]:
        """Texts of pairs: same length, same order; a pair that fails has `error` set and no text."""
