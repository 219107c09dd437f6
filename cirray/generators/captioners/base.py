"""The captioner interface. A caption costs one call per image, however many pairs it is in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from cirray.data.config import ImageLimits
from cirray.generators.base import Unwritten
from cirray.generators.captioners.config import CaptionerConfig

SettingsT = TypeVar("SettingsT", bound=CaptionerConfig, contravariant=True)


@dataclass(frozen=True)
class Picture:
    """An image to caption. `place` is `Place.text()`; `known` is the data set's own caption, if any."""

    image_id: str
    place: str = ""
    known: str = ""


@dataclass(frozen=True)
class CaptionerSetup:
    """How captioners work, whatever their settings; it changes no caption."""

    device: str = "cpu"
    batch: int = 64
    limits: ImageLimits = ImageLimits()


class Captioner(Protocol):
    """Captions images; deterministic, so that captions can be cached."""

    @property
    def digest(self) -> str:
        """Identifies weights, instruction and decoding."""

    def content(self, picture: Picture) -> bytes:
        """Digest of what the captioner reads of an image: equal content, equal caption.

        Raises DataError for an image that cannot be used.
        """

    def caption(self, pictures: Sequence[Picture]) -> Sequence[str | Unwritten]:
        """One text per image, in order; an empty text is a failure without a reason."""


class MakeCaptioner(Protocol[SettingsT]):
    """Loads a captioner."""

    def __call__(self, settings: SettingsT, setup: CaptionerSetup) -> Captioner:
        """By its settings, of the class that it is registered with.

        Raises ArtifactError when there is nothing to load, and ConfigError for settings that do not fit what is there.
        """
