"""The modification-text generator: pairs in, one `Generation` per pair out, failures as values."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from cirray.types import Generation, Pair


class FeatureLookup(Protocol):
    """Frozen patch tokens by image id; the feature store is one."""

    def get(self, ids: Sequence[str]) -> np.ndarray:
        """Tokens `[n, P, D]`, any float type, in the order of `ids`."""

    def __contains__(self, image_id: object) -> bool:
        """Whether the image has features."""


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
