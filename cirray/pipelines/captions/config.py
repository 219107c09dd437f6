"""Configuration of the caption stages. No torch, no ray."""

from pydantic import Field, model_validator

from cirray.core.config import Config
from cirray.core.fields import Effort, Place
from cirray.data.config import DataConfig, ImageLimits
from cirray.pipelines.cluster.config import Part, PoolConfig, RayConfig

READ_FEATURES = ("small", "cells")
"""Captioners that start from a generator artifact and read features; the others read image files or nothing."""


class CaptionRun(Config):
    """Write one short caption for every image."""

    data: DataConfig = DataConfig()
    """Whose images; also the captions that `existing` takes over."""
    parts: tuple[Part, ...] = ("pool",)
    """Which images: those of the triplets and captions, the unlabelled pool, the gallery, the queries' references."""
    captioner: str = "cells"
    """`cells` (the embedded world's exact one) and `small` (Q-Former and language model of a generator artifact), `hf`
    (an image-to-text model of Hugging Face), or `existing` (the data set's own captions)."""
    source: Place = "~/cirray/quickstart/generator"
    """Generator artifact (`small`, `cells`), or folder or hub id (`hf`)."""
    features: tuple[Place, ...] = ("~/cirray/quickstart/features",)
    """Features artifacts that hold the images; read by `small` and `cells` alone."""
    prompt: str = "caption/1"
    """Version of the instruction (`hf`)."""
    noun: str = "image"
    """What the instruction calls the image: `image`, or a garment (`dress`)."""
    words: int = Field(10, ge=1)
    """How many words the instruction asks for (SPN: 10 natural images, 5 garments)."""
    reuse: Effort[tuple[Place, ...]] = ()
    """Captions artifacts whose texts are taken over where image, captioner, prompt and words are the same."""
    limits: ImageLimits = ImageLimits()
    """Caps on images."""
    batch: Effort[int] = Field(64, ge=1)
    """Images told together."""
    part_rows: int = Field(512, ge=1)
    """Images per part: the unit of work, of progress and of what a kill may cost."""
    judge: Place = ""
    """Root of a shapes world whose scenes judge the captions of images that the data set does not caption."""
    pool: Effort[PoolConfig] = PoolConfig()
    """Actors with a captioner each."""
    ray: Effort[RayConfig] = RayConfig()
    out: Place = "~/cirray/quickstart/captions"
    """Captions artifact (path or URI)."""

    @model_validator(mode="after")
    def _named(self) -> "CaptionRun":
        if self.captioner in READ_FEATURES and not self.features:
            raise ValueError(f"captioner {self.captioner} needs features; name at least one artifact")
        return self


class RewriteConfig(Config):
    """A language model that puts filled templates into other words; off in the method's default."""

    source: Place = ""
    """Folder or hub id of a causal language model; empty: templates stay as they are."""
    top_k: int = Field(10, ge=1)
    """Tokens among which each next one is drawn."""
    new_tokens: int = Field(50, ge=1)
    """Longest answer (SPN: 25 or 50)."""


class CaptionGeneratorRun(Config):
    """Make a generator that fills templates with captions, for `cirray generate`."""

    captions: tuple[Place, ...] = ("~/cirray/quickstart/captions",)
    """Captions artifacts; an image may be in one only, or say the same in all."""
    templates: tuple[str, ...] = ("0", "1")
    """Ids of `caption_templates.json` (SPN: 0 and 1 for CIRR, 2 for Fashion IQ); one is drawn per pair."""
    token_limit: int = Field(77, ge=3)
    """Texts of more CLIP tokens fall back to the target's caption."""
    rewrite: RewriteConfig = RewriteConfig()
    """Other words by a language model."""
    out: Place = "~/cirray/quickstart/caption_generator"
    """Generator artifact (path or URI)."""

    @model_validator(mode="after")
    def _named(self) -> "CaptionGeneratorRun":
        if not self.captions or not self.templates:
            raise ValueError("captions and templates need at least one entry each")
        return self
