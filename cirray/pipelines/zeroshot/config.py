"""Configuration of the zero-shot stages. No torch, no ray."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cirray.core.config import Config
from cirray.core.fields import Effort, Features, Kind, Place, Some
from cirray.core.places import Run
from cirray.data.config import DataConfig, ImageLimits, TransformConfig
from cirray.models.towers.config import ClipModelConfig
from cirray.models.words.config import WordMapConfig
from cirray.training.tower_config import ClipTrainingConfig
from cirray.training.zeroshot.config import MappingConfig


class ClipRun(Run):
    """Make a small CLIP (image and text encoder in one space) as towers: shipped, or trained on images and captions."""

    source: Literal["asset", "train"] = "asset"
    """Where it comes from. `asset`: shipped, for the embedded world. `train`: from scratch."""
    corpus: Literal["shapes", "data"] = "shapes"
    """Training data: captioned fresh scenes that no embedded world holds, or captioned images of `data`."""
    data: DataConfig = DataConfig()
    """Images and captions of `corpus=data`."""
    model: ClipModelConfig = ClipModelConfig()
    """Sizes of a trained CLIP."""
    transform: TransformConfig = TransformConfig()
    """How its images are prepared; `size` is the model's image size."""
    training: ClipTrainingConfig = ClipTrainingConfig()
    """Loop, heads."""
    tokens: Literal["embedding", "all", "unprojected"] = "unprojected"
    """What the vision tower gives for an image. `embedding`: the image embedding. `all`: also projected tokens.
    `unprojected`: also the last block's patches."""
    judged: int = Field(500, ge=0)
    """Fresh pairs to measure retrieval on, for the manifest."""
    limits: ImageLimits = ImageLimits()
    """Limits on images that are read."""
    device: Effort[str] = "cpu"
    """Where it is trained."""
    out: Place = "@clip"
    """Towers artifact (path or URI): `vision/` the frozen tower, `clip/` the whole CLIP in Hugging Face layout."""

    @model_validator(mode="after")
    def _one_size(self) -> "ClipRun":
        if self.source == "train" and self.transform.size != self.model.image_size:
            raise ValueError(f"transform.size {self.transform.size} must be model.image_size {self.model.image_size}")
        return self


class MapValidationConfig(Config):
    """A benchmark that is measured while the map is trained, and the weights that it chooses (LinCIR: CIRR's val)."""

    data: DataConfig | None = None
    """Its queries, galleries and figures; null: nothing is measured, and the last weights stay."""
    features: tuple[Features, ...] = ()
    """Features artifacts of its images, made by the same tower; empty: those of the captioned images."""
    every: int = Field(1000, ge=1)
    """Steps between two measurements (a multiple of training.log_every); the last step is measured too."""
    keep: tuple[str, ...] = ("val_R@1",)
    """Keep the weights with the best mean of these figures; empty: those of the last step."""


class MapRun(Run):
    """Train the map from images to pseudo-words (stage 1 of two-stage zero-shot retrieval, or one of its baselines)."""

    data: DataConfig = DataConfig()
    """Images with captions; no triplet is read."""
    images: int | None = Field(None, ge=1)
    """Number of captioned images used, the first ones; null: all."""
    caption_origin: str = "data set"
    """Who wrote the captions (people, a captioner and its version), for the manifest."""
    features: Some[tuple[Features, ...]] = ("@clip_features",)
    """Features artifacts of these images, made by the CLIP's vision tower."""
    towers: Place = "@clip"
    """Towers artifact of the CLIP. Its vision tower is copied into the checkpoint."""
    model: WordMapConfig = WordMapConfig()
    """phi, injection, prompts; an empty source is the towers artifact's own CLIP."""
    training: MappingConfig = MappingConfig()
    """Objective, steps, optimiser."""
    validation: MapValidationConfig = MapValidationConfig()
    """A benchmark measured while training."""
    judged: int = Field(500, ge=0)
    """Captioned images to measure on, for the manifest: pseudo-sentences must find their image."""
    guard: tuple[DataConfig, ...] = ()
    """Benchmarks whose val and test images must not be used; a run that would use some is refused, with a list."""
    allow_leaks: Effort[bool] = False
    """Go on although images of a benchmark in `guard` are used; the manifest records them."""
    device: Effort[str] = "cpu"
    """Where it is trained."""
    out: Place = "@mapped"
    """Checkpoint artifact (path or URI)."""

    @model_validator(mode="after")
    def _named(self) -> "MapRun":
        every, rows = self.validation.every, self.training.log_every
        if self.validation.data is not None and every % rows:
            raise ValueError(f"validation.every {every} must be a multiple of training.log_every {rows}")
        return self


class SampleRun(Run):
    """Draw a part of a triplets artifact, for studies of scale and of quality."""

    triplets: Annotated[Place, Kind("triplets")] = "@checked"
    """Triplets artifact."""
    count: int | None = Field(None, ge=1)
    """Number of rows drawn; null: all. A smaller sample is part of every larger one of the same seed."""
    shuffled: float = Field(0.0, ge=0, le=1)
    """Share of the rows whose texts are exchanged among them: wrong texts of the right kind."""
    template: str = ""
    """One text for all rows in place of their own; empty: theirs."""
    seed: int = Field(0, ge=0)
    """Seed of the draw and of the exchange."""
    out: Place = "@sampled"
    """Triplets artifact (path or URI)."""
