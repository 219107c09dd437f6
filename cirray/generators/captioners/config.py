"""Captioners' settings. No torch."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from cirray.core.components import Component
from cirray.core.config import Config
from cirray.core.fields import Common, Features, Kind, Place, Some
from cirray.core.registry import Registry
from cirray.generators.engines.config import EngineChoice
from cirray.generators.prompts import find_prompt, version_in

if TYPE_CHECKING:
    from cirray.generators.captioners.base import MakeCaptioner

_TABLE = ("caption prompt", "cirray.generators.captioners")


class CaptionerConfig(Config):
    """Base of all captioners' settings, and the settings of one without its own."""

    reads: ClassVar[Literal["picture", "features", "caption"]] = "picture"
    """Of an image: its file, its features, or the data set's own caption."""


class ExistingConfig(CaptionerConfig):
    """The data set's own captions."""

    reads = "caption"


class ReadingConfig(CaptionerConfig):
    """A trained generator that reads one image."""

    reads = "features"

    source: Common[Annotated[Place, Kind("generator")]] = "@generator"
    """Generator artifact."""
    features: Some[tuple[Features, ...]] = ("@features",)
    """Features artifacts that hold the images."""


class InstructedConfig(CaptionerConfig):
    """A model that follows an instruction about a picture."""

    prompt: Annotated[str, version_in(*_TABLE)] = "caption/1"
    """Version of the instruction: `caption/1`, or `blip2/1` (the beginning of a caption)."""
    noun: str = "image"
    """What the instruction calls the image: `image`, or a garment (`dress`)."""
    words: int = Field(10, ge=1)
    """Words that the instruction asks for (SPN: 10 for natural images, 5 for garments)."""

    @property
    def instruction(self) -> str:
        """The instruction, filled in."""
        return find_prompt(self.prompt, *_TABLE).format(noun=self.noun, words=self.words)


class HfConfig(InstructedConfig):
    """An image-to-text model of Hugging Face."""

    source: Place
    """Folder or hub id of the model."""


class LmmCaptionConfig(InstructedConfig):
    """A large multimodal model behind an engine."""

    engine: EngineChoice
    """What answers: a server, or a model in this process."""
    side: int = Field(448, ge=32, le=4096)
    """Longest side in pixels of a picture as the model sees it."""


CAPTIONERS: "Registry[MakeCaptioner[Any]]" = Registry(
    "captioner", [f"cirray.generators.captioners.{name}" for name in ("existing", "small", "cells", "hf", "lmm")],
    {
        "cells": ReadingConfig, "existing": ExistingConfig, "hf": HfConfig, "lmm": LmmCaptionConfig,
        "small": ReadingConfig,
    }, CaptionerConfig,
)  # fmt: skip
"""Name -> constructor."""


class CaptionerChoice(Component):
    """What captions the images."""

    registry = CAPTIONERS
    kind: str = "cells"
    """Name of the captioner: `cells` (the embedded world's exact one) and `small` read a generator's soft tokens, `hf`
    is an image-to-text model, `lmm` a large model behind an endpoint, `existing` the data set's own captions."""

    @property
    def reads(self) -> str:
        """See `CaptionerConfig.reads`."""
        return self.settings.reads if isinstance(self.settings, CaptionerConfig) else CaptionerConfig.reads
