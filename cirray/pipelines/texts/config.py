"""Configuration of mining, the generator and generation. No torch, no ray."""

from typing import Annotated, Literal

from pydantic import Field, field_serializer, model_validator

from cirray.core.config import given_beside
from cirray.core.fields import Common, Effort, Features, Kind, Place, Some
from cirray.core.places import Run
from cirray.data.config import DataConfig, ImageLimits
from cirray.generators.config import DecodingConfig, GeneratorChoice, TrainableConfig, TrainedGenerator
from cirray.mining.config import MiningConfig
from cirray.models.towers.config import FrozenLanguageConfig
from cirray.pipelines.cluster.config import Part, PoolConfig, RayConfig, RayTrainConfig
from cirray.training.config import AlignmentConfig, AnswerTrainingConfig
from cirray.triplets.config import FilterConfig


class ExportTripletsRun(Run):
    """Write triplets with their pictures for others: a data set for the hub, or files that other programs train on.

    `data.format=huggingface` (from the folder or by its hub id), `megapairs` and `cirr` read them back as they were.
    """

    triplets: Annotated[Place, Kind("triplets")] = "@synthetic"
    """Triplets artifact."""
    data: DataConfig = DataConfig()
    """The data set whose pictures the triplets name."""
    layout: Common[Literal["datasets", "megapairs", "cirr"]] = "datasets"
    """`datasets`: Parquet files that the library `datasets` opens. `megapairs`: a JSON object a line with `q_img`,
    `q_texts`, `t_img`, `hns`. `cirr`: CIRR's `captions` and `image_splits`. In both, pictures are files, and what
    the layout has no place for stands under the key `cirray`."""
    name: str = "composed image retrieval triplets"
    """Heading of the card."""
    license: str = "other"
    """License of the pictures and texts, as the card's metadata name it."""
    notes: str = ""
    """A paragraph for the card."""
    file_mb: int = Field(256, ge=1)
    """Layout `datasets`: size in MB at which a file of pictures is closed and the next one begun."""
    push: Effort[str] = ""
    """Hub id, OWNER/NAME, that the folder is uploaded to; empty: none. A finished one is uploaded too."""
    private: Effort[bool] = True
    """Whether a repository that `push` makes is yours alone to see."""
    out: Place = "@shared-triplets"
    """Folder to write (path or URI)."""


class ImportTripletsRun(Run):
    """Take the triplets of a data set, of any format, as a triplets artifact: to check, to sample, to train on."""

    data: DataConfig = DataConfig()
    """The data set."""
    out: Place = "@imported"
    """Triplets artifact (path or URI)."""


class MineRun(Run):
    """Choose image pairs that are worth a text."""

    data: DataConfig = DataConfig()
    features: tuple[Place, ...] = ("@features",)
    """Features artifacts that hold the images. The policies `existing` and `reverse` need none; images that could not
    be embedded are passed over."""
    parts: tuple[Part, ...] = ("pool",)
    """Images to pair."""
    exclude_parts: tuple[Part, ...] = ("gallery",)
    """Parts whose images no pair may hold. A benchmark's val and test images are never paired."""
    exclude_ids: Place = ""
    """Text file of further image ids that no pair may hold, one per line."""
    guard: tuple[DataConfig, ...] = ()
    """Benchmarks whose val and test images must not be used; a run that would use some is refused, with a list."""
    allow_leaks: Effort[bool] = False
    """Go on although images of a benchmark in `guard` are used; the manifest records them."""
    split: str = "train"
    """Split of the triplets that `existing` and `reverse` read."""
    mining: MiningConfig = MiningConfig()
    ray: Effort[RayConfig] = RayConfig()
    """A named cluster searches the windows of 20,000 images and more on all its nodes."""
    out: Place = "@pairs"
    """Pairs artifact (path or URI)."""


class GenerateRun(Run):
    """Stream pairs through generator actors and write triplets."""

    pairs: Annotated[Place, Kind("pairs")] = "@pairs"
    """Pairs artifact."""
    generator: Common[GeneratorChoice] = GeneratorChoice()
    """What writes the texts."""
    features: tuple[Features, ...] = ("@features",)
    """Features artifacts that hold the pairs' images; none where the generator looks at pictures or captions."""
    out: Place = "@synthetic"
    """Triplets artifact (path or URI)."""
    directions: Literal["both", "forward"] = "both"
    """Triplets of a pair. `both`: two, each with the other's text as its reverse text. `forward`: one."""
    reverse_texts: bool = True
    """Write reverse texts; needed by `directions: both`."""
    source: str = "mtst"
    """Source tag of the rows."""
    weight: float = Field(1.0, ge=0)
    """Weight of the rows in training."""
    split: str = "train"
    """Split of the rows."""
    seed: int = Field(0, ge=0)
    """Seed of sampled decoding; part of every triplet's id."""
    part_rows: int = Field(512, ge=1)
    """Pairs per part. What a killed run has written of one is kept, but for the last minute."""
    filters: FilterConfig = FilterConfig()
    judge: Place = ""
    """Root of a shapes world whose scenes judge the texts; the share of right ones becomes a metric."""
    guard: tuple[DataConfig, ...] = ()
    """Benchmarks whose val and test images must not be used; a run that would use some is refused, with a list."""
    allow_leaks: Effort[bool] = False
    """Go on although images of a benchmark in `guard` are used; the manifest records them."""
    pool: Effort[PoolConfig] = PoolConfig()
    ray: Effort[RayConfig] = RayConfig()

    @model_validator(mode="after")
    def _sees(self) -> "GenerateRun":
        if self.generator.reads == "features":
            if not self.features:
                raise ValueError(f"generator kind {self.generator.kind!r} reads features; name at least one artifact")
        elif "features" in self.model_fields_set and self.features:
            raise ValueError(f"generator kind {self.generator.kind!r} reads {self.generator.reads}; leave features out")
        else:
            object.__setattr__(self, "features", ())
        return self

    @model_validator(mode="after")
    def _named(self) -> "GenerateRun":
        if self.directions == "both" and not self.reverse_texts:
            raise ValueError("directions 'both' needs reverse_texts; set directions=forward or reverse_texts=true")
        return self


class GeneratorRun(FrozenLanguageConfig, Run):
    """Train the modification-text generator on the small labelled part."""

    data: DataConfig = DataConfig()
    """Triplets (split `train` trains, `val` evaluates) and captions."""
    towers: Annotated[Place, Kind("towers")] = "@towers"
    """Towers artifact: vision tower and language model."""
    features: tuple[Features, ...] = ("@features",)
    """Features artifacts that hold the labelled images; without any, they are encoded here."""
    language: Place = ""
    """Folder or hub id of another language model than the towers'. A whole InstructBLIP checkpoint serves too."""
    qformer_source: Place = ""
    """BLIP-2 or InstructBLIP checkpoint to start from (folder or hub id). Its Q-Former and projection are the start
    weights; its sizes replace those of `generator.settings.qformer`."""
    source_projection: bool = True
    """Start the projection from `qformer_source` too; false: at random, as another language model needs."""
    generator: Common[TrainedGenerator] = TrainedGenerator()
    """The network."""
    labels: int | None = Field(None, ge=1)
    """Number of training triplets used, with the captions of their images; null: all. Families stay whole."""
    alignment: Literal["auto", "bags", "words", "captions", "none"] = "auto"
    """What is learned before any label. `bags`: soft tokens to the phrases of cells (captions of the embedded world).
    `words`: any captions as bags of words, without the language model. `captions`: captions through the language model.
    `auto`: `bags` where the captions allow them, else `captions`."""
    alignment_training: AlignmentConfig = AlignmentConfig()
    """Alignment's loop."""
    training: AnswerTrainingConfig = AnswerTrainingConfig()
    """Training on the labelled triplets."""
    decoding: DecodingConfig = DecodingConfig()
    """Decoding of the evaluation."""
    evaluate_pairs: int = Field(400, ge=0)
    """Held-out pairs whose texts are written in both directions, and judged where scenes are known."""
    zero_shot: bool = True
    """Also evaluate before any labelled triplet was seen."""
    scenes: Place = "auto"
    """Root of a shapes world whose scenes judge the texts; `auto`: the data's root when it has scenes; empty: none."""
    guard: tuple[DataConfig, ...] = ()
    """Benchmarks whose val and test images must not be used; a run that would use some is refused, with a list."""
    allow_leaks: Effort[bool] = False
    """Go on although images of a benchmark in `guard` are used; the manifest records them."""
    limits: ImageLimits = ImageLimits()
    """Limits on images that are read."""
    device: Effort[str] = "cpu"
    """Where the generator is trained."""
    seed: int = Field(0, ge=0)
    """Seed of the start weights. The loops have their own."""
    out: Place = "@generator"
    """Generator artifact (path or URI)."""
    ray: Effort[RayTrainConfig | None] = None
    """Ray Train's workers for both loops, or null: this process."""
    ray_from: Effort[int] = Field(2000, ge=0)
    """Number of held-out pairs from which as many actors as `ray` has workers write their texts and compute the loss of
    people's; fewer are done by this process on `device`."""
    part_rows: Effort[int] = Field(256, ge=1)
    """Held-out pairs in a part. A killed run repeats only the parts that it did not finish."""

    _said = field_serializer("generator", mode="wrap")(given_beside("qformer_source"))

    @model_validator(mode="after")
    def _shared(self) -> "GeneratorRun":
        if isinstance(self.generator.settings, TrainableConfig):
            self.generator.settings.check(self)
        workers = self.ray.num_workers if self.ray and self.ray.enabled else 0
        for name, loop in (("alignment_training", self.alignment_training), ("training", self.training)):
            if workers and loop.batch % workers:
                raise ValueError(f"{name}.batch {loop.batch} does not divide by ray.num_workers {workers}")
            if not workers and loop.engine != "torch":
                raise ValueError(f"{name}.engine {loop.engine!r} needs workers; set ray.num_workers or engine=torch")
        return self


class CheckRun(Run):
    """Keep the generated triplets whose target a base retriever finds by the text (round trip), or weight them."""

    triplets: Annotated[Place, Kind("triplets")] = "@synthetic"
    """Triplets artifact to check."""
    checkpoint: Annotated[Place, Kind("checkpoint")] = "@labelled_equal"
    """Checkpoint of the base retriever. It must not have been trained on these triplets; labelled ones are fine."""
    features: Some[tuple[Features, ...]] = ("@features",)
    """Features artifacts that hold the triplets' images, made by the checkpoint's vision tower."""
    tests: Some[tuple[Literal["rank", "outrank", "direction"], ...]] = ("rank",)
    """What a triplet must pass. `rank`: its target is found. `outrank`: its target beats its own reference.
    `direction`: its text leads from reference to target more than back."""
    top_k: int = Field(20, ge=1)
    """Test `rank`: last rank at which the target may stand. All images of the triplets but the reference are ranked."""
    both: bool = True
    """Keep a triplet only together with its reverse twin: texts of one pair are right or wrong together."""
    failing: Literal["drop", "weight"] = "drop"
    """What becomes of a triplet that fails. `weight`: it is kept at a smaller weight, by which its loss counts in
    training: top_k / rank, or the odds, at the checkpoint's temperature, of the image that it was to beat."""
    batch: Effort[int] = Field(256, ge=1)
    """Images and queries per forward pass."""
    judge: Place = ""
    """Root of a shapes world whose scenes judge the kept texts; the share of right ones becomes a metric."""
    part_rows: int = Field(4096, ge=1)
    """Triplets in a part of the artifact. A killed run repeats only the parts that it did not finish."""
    pool: Effort[PoolConfig] = PoolConfig()
    ray: Effort[RayConfig] = RayConfig()
    ray_from: Effort[int] = Field(100_000, ge=0)
    """Number of triplets from which a pool checks them; fewer are done by this process before a cluster has started."""
    out: Place = "@checked"
    """Triplets artifact (path or URI). Its rejected rows hold what did not pass, with the rank."""


class OracleRun(Run):
    """Replace generated texts by the true ones of the embedded world (the table's upper bound)."""

    triplets: Annotated[Place, Kind("triplets")] = "@synthetic"
    """Generated triplets whose pairs are used."""
    world: Annotated[Place, Kind("world")] = "@world"
    """World artifact with the scenes."""
    seed: int = 0
    """Which paraphrase is drawn."""
    out: Place = "@oracle"
    """Triplets artifact (path or URI)."""
