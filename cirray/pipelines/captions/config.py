"""Configuration of the caption stages. No torch, no ray."""

from typing import Annotated

from pydantic import Field

from cirray.core.config import Config
from cirray.core.fields import Common, Effort, Kind, Place, Some
from cirray.core.places import Run
from cirray.data.config import DataConfig, ImageLimits
from cirray.generators.captioners.config import CaptionerChoice
from cirray.pipelines.cluster.config import Part, PoolConfig, RayConfig


class CaptionRun(Run):
    """Write one short caption for every image."""

    data: DataConfig = DataConfig()
    """Whose images; also the captions that `existing` takes over."""
    parts: tuple[Part, ...] = ("pool",)
    """Which images to caption. `labelled`: those of triplets and captions; `references`: those of the queries."""
    captioner: Common[CaptionerChoice] = CaptionerChoice()
    """What captions the images."""
    reuse: Effort[tuple[Place, ...]] = ()
    """Captions artifacts whose texts are used again where image, captioner and its settings are the same."""
    limits: ImageLimits = ImageLimits()
    """Limits on images."""
    batch: Effort[int] = Field(64, ge=1)
    """Images captioned together."""
    part_rows: int = Field(512, ge=1)
    """Images per part; what a killed run has captioned of one is kept."""
    judge: Place = ""
    """Root of a shapes world whose scenes judge captions that the data set does not have."""
    pool: Effort[PoolConfig] = PoolConfig()
    """Actors with a captioner each."""
    ray: Effort[RayConfig] = RayConfig()
    out: Place = "@captions"
    """Captions artifact (path or URI)."""


class RewriteConfig(Config):
    """A language model that puts filled templates into other words; off in the method's default."""

    source: Place = ""
    """Folder or hub id of a causal language model; empty: templates stay as they are."""
    top_k: int = Field(10, ge=1)
    """Tokens among which each next one is drawn."""
    new_tokens: int = Field(50, ge=1)
    """Longest answer (SPN: 25 or 50)."""


class CaptionGeneratorRun(Run):
    """Make a generator that fills templates with captions, for `cirray generate`."""

    captions: Some[tuple[Annotated[Place, Kind("captions")], ...]] = ("@captions",)
    """Captions artifacts; an image that is in several must have the same caption in each."""
    templates: Some[tuple[str, ...]] = ("0", "1")
    """Ids of `caption_templates.json` (SPN: 0 and 1 for CIRR, 2 for Fashion IQ); one is drawn per pair."""
    token_limit: int = Field(77, ge=3)
    """Longest text in CLIP tokens; longer ones are replaced by the target's caption."""
    rewrite: RewriteConfig = RewriteConfig()
    """Rewording by a language model."""
    out: Place = "@caption_generator"
    """Generator artifact (path or URI)."""
