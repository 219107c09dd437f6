"""What a captioner is, and the registry of them. A caption costs one call per image, whatever the number of pairs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cirray.core.registry import Registry
from cirray.data.config import ImageLimits
from cirray.generators.base import FeatureLookup
from cirray.generators.prompts import find_prompt


@dataclass(frozen=True)
class Picture:
    """An image to be told. `place` is what `Place.text` wrote; `known` a caption that the data set has."""

    image_id: str
    place: str = ""
    known: str = ""


@dataclass(frozen=True)
class CaptionerSettings:
    """What captioners are made from; each takes what it needs."""

    source: str = ""
    prompt: str = ""
    words: int = 10
    features: FeatureLookup | None = None
    device: str = "cpu"
    batch: int = 64
    limits: ImageLimits = ImageLimits()


class Captioner(Protocol):
    """Tells images; deterministic, so that a caption can be kept."""

    @property
    def digest(self) -> str:
        """Identifies weights and decoding."""

    def content(self, picture: Picture) -> bytes:
        """What the captioner reads of an image: equal content, equal caption.

        Raises:
            DataError: for an image that cannot be used.
        """

    def caption(self, pictures: Sequence[Picture]) -> list[str]:
        """One text per image, in order; an empty text is a failure."""


CAPTIONERS: Registry[Callable[[CaptionerSettings], Captioner]] = Registry(
    "captioner", [f"cirray.generators.captioners.{name}" for name in ("existing", "small", "cells", "hf")]
)
"""Name -> how it is made."""


def caption_prompt(version: str, noun: str, words: int) -> str:
    """The instruction filed under `name/version`, filled in.

    Raises:
        ConfigError: for an unknown version.
    """
    return find_prompt(version, "caption prompt", "cirray.generators.captioners").format(noun=noun, words=words)
