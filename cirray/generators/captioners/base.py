"""The captioner interface and registry. A caption costs one call per image, however many pairs it is in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cirray.core.registry import Registry
from cirray.data.config import ImageLimits
from cirray.generators.base import FeatureLookup
from cirray.generators.prompts import find_prompt


@dataclass(frozen=True)
class Picture:
    """An image to caption. `place` is `Place.text()`; `known` is the data set's own caption, if any."""

    image_id: str
    place: str = ""
    known: str = ""


@dataclass(frozen=True)
class CaptionerSettings:
    """Settings of captioners; each uses what it needs."""

    source: str = ""
    prompt: str = ""
    words: int = 10
    features: FeatureLookup | None = None
    device: str = "cpu"
    batch: int = 64
    limits: ImageLimits = ImageLimits()


class Captioner(Protocol):
    """Captions images; deterministic, so that captions can be cached."""

    @property
    def digest(self) -> str:
        """Identifies weights and decoding."""

    def content(self, picture: Picture) -> bytes:
        """Digest of what the captioner reads of an image: equal content, equal caption.

        Raises:
            DataError: for an image that cannot be used.
        """

    def caption(self, pictures: Sequence[Picture]) -> list[str]:
        """One text per image, in order; an empty text is a failure."""


CAPTIONERS: Registry[Callable[[CaptionerSettings], Captioner]] = Registry(
    "captioner", [f"cirray.generators.captioners.{name}" for name in ("existing", "small", "cells", "hf")]
)
"""Name -> constructor."""


def caption_prompt(version: str, noun: str, words: int) -> str:
    """The instruction called `name/version`, filled in.

    Raises:
        ConfigError: for an unknown version.
    """
    return find_prompt(version, "caption prompt", "cirray.generators.captioners").format(noun=noun, words=words)
