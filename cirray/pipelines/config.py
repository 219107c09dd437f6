"""Configuration of the stages that run on Ray. No torch, no ray."""

from typing import Annotated, Literal

from pydantic import Field, field_serializer, model_validator

from cirray.core.config import Config, given_beside
from cirray.data.config import DataConfig, ImageLimits, TransformConfig
from cirray.generators.config import (
    AlignmentConfig,
    AnswerTrainingConfig,
    DecodingConfig,
    GeneratorConfig,
    check_language,
)
from cirray.index.config import IndexConfig
from cirray.mining.config import MiningConfig
from cirray.models.config import DualEncoderConfig, EncoderChoice, RetrieverConfig, VisionTowerConfig
from cirray.models.towers.config import (
    FrozenLanguageConfig,
    LanguageModelConfig,
    LanguageTrainingConfig,
    VisionTrainingConfig,
)
from cirray.pipelines.validation_config import ValidationConfig
from cirray.training.config import SpaceConfig, TrainingConfig
from cirray.triplets.config import FilterConfig

SOURCE = "source"
"""`temperature: source`: the one of the checkpoint that gives the start weights."""

Part = Literal["labelled", "pool", "gallery", "references"]


class RayConfig(Config):
    """Which Ray cluster a stage uses. None of these values changes what a stage writes."""

    enabled: bool = True
    """Without it the same actors are called in this process, one part after another."""
    address: str = ""
    """A running cluster (`auto`, `host:port`). Empty: `RAY_ADDRESS` if set (as inside jobs), else a private one."""
    autoscaling: bool = False
    """The named cluster grows on demand: wait for nodes instead of refusing what it cannot hold now."""
    num_cpus: int | None = Field(None, ge=1)
    """Logical CPUs of a private cluster; default: the machine's, at least 8, so that no stage can starve another."""
    num_gpus: int | None = Field(None, ge=0)
    """GPUs of a private cluster; default: what Ray finds."""
    object_store_memory: int = Field(500_000_000, ge=80_000_000)
    """Bytes of shared memory of a private cluster."""
    dashboard: bool = False
    """Start the dashboard of a private cluster (early-stopped trials of a sweep need it)."""
    temp_dir: str = ""
    """Session folder of a private cluster; keep it short. Default: Ray's own."""
    no_progress_timeout_s: float = Field(120.0, gt=0)
    """A Ray Data stage that finishes nothing for so long is an error; raise it where one part takes minutes."""
    show_output: bool = False
    """Show Ray's own bars and messages."""


class PoolConfig(Config):
    """A pool of equal actors."""

    size: int = Field(2, ge=1)
    """Actors."""
    cpus: float = Field(0.25, ge=0)
    """Logical CPUs that one actor holds for the whole run; a scheduling figure, not a speed."""
    gpus: float = Field(0.0, ge=0)
    """GPUs of one actor; 0 computes on the CPU, a fraction shares one."""
    threads: int = Field(1, ge=1)
    """Threads of one actor's matrix products."""


class EmbedRun(Config):
    """Run every image through the frozen vision tower, once."""

    data: DataConfig = DataConfig()
    parts: tuple[Part, ...] = ("labelled", "pool", "gallery")
    """Which images: those of the triplets and captions, the unlabelled pool, the gallery, the queries' references. The
    first three: every image."""
    tower: str = "~/cirray/quickstart/towers"
    """A `towers` or `checkpoint` artifact (path or URI), or whatever `load_vision_tower` reads."""
    out: str = "~/cirray/quickstart/features"
    """Features artifact (path or URI)."""
    limits: ImageLimits = ImageLimits()
    shard_rows: int = Field(512, ge=1)
    """Images per shard: the unit of work, of progress and of what a kill may cost."""
    batch: int = Field(128, ge=1)
    """Images per forward pass."""
    decode_tasks: int = Field(2, ge=1)
    """Images are read and decoded by so many processes beside the actors."""
    pool: PoolConfig = PoolConfig(size=1)
    ray: RayConfig = RayConfig()


class DoctorRun(Config):
    """Check a data set on disk."""

    root: str = ""
    """Root of the data set; empty: as `data` says. On the command line: `cirray doctor ROOT`."""
    dataset: str = ""
    """Its format (`cirr`, `fashioniq`, ...); empty: as `data` says."""
    data: DataConfig = DataConfig()
    """Everything else about it, e.g. `data.cirr.images`."""
    splits: tuple[str, ...] = ()
    """Splits that must be there; empty: all whose files are."""
    decode: bool = True
    """Read and decode every image; without it only annotations are checked."""
    accept: tuple[str, ...] = ()
    """Codes of findings that are told but do not count, e.g. `[duplicate, wrong_extension]`."""
    limits: ImageLimits = ImageLimits()
    """Caps on images."""
    shard_rows: int = Field(512, ge=1)
    """Images per part."""
    tasks: int = Field(2, ge=1)
    """Processes that decode."""
    ray_from: int = Field(5000, ge=0)
    """With fewer images this process checks them alone: it is done before a cluster has started."""
    as_json: bool = False
    """Print the whole report as JSON (`--json`)."""
    out: str = ""
    """Artifact with the report and a table of every image's hash (path or URI); empty: none."""
    ray: RayConfig = RayConfig()


class MineRun(Config):
    """Choose image pairs that are worth a text."""

    data: DataConfig = DataConfig()
    features: tuple[str, ...] = ("~/cirray/quickstart/features",)
    """Features artifacts that hold the images; unused by the policies `existing` and `reverse`. Images that could not
    be embedded are passed over."""
    parts: tuple[Part, ...] = ("pool",)
    """Images to pair."""
    exclude_parts: tuple[Part, ...] = ("gallery",)
    """Images that no pair may hold, whatever part they are in; a benchmark's own val and test images never are."""
    exclude_ids: str = ""
    """A text file of further image ids that no pair may hold, one per line."""
    guard: tuple[DataConfig, ...] = ()
    """Benchmarks whose val and test images must not be among these; they are refused with the list."""
    allow_leaks: bool = False
    """Go on with such images all the same; the manifest records them."""
    split: str = "train"
    """Split of the triplets that `existing` and `reverse` read."""
    mining: MiningConfig = MiningConfig()
    out: str = "~/cirray/quickstart/pairs"
    """Pairs artifact (path or URI)."""


class GenerateRun(FrozenLanguageConfig):
    """Stream pairs through generator actors and write triplets."""

    pairs: str = "~/cirray/quickstart/pairs"
    """Pairs artifact."""
    features: tuple[str, ...] = ("~/cirray/quickstart/features",)
    """Features artifacts that hold the pairs' images."""
    generator: str = "~/cirray/quickstart/generator"
    """Generator artifact."""
    decoding: DecodingConfig = DecodingConfig()
    """How texts are decoded."""
    out: str = "~/cirray/quickstart/synthetic"
    """Triplets artifact (path or URI)."""
    directions: Literal["both", "forward"] = "both"
    """`both`: a pair gives two triplets, each with the other's text as its reverse text; `forward`: one triplet."""
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
    """Pairs per part: the unit of work, of progress and of what a kill may cost."""
    filters: FilterConfig = FilterConfig()
    judge: str = ""
    """Root of a shapes world whose scenes judge the texts; the shares of right ones become metrics of the artifact."""
    guard: tuple[DataConfig, ...] = ()
    """Benchmarks whose val and test images must not be among these; they are refused with the list."""
    allow_leaks: bool = False
    """Go on with such images all the same; the manifest records them."""
    pool: PoolConfig = PoolConfig()
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _named(self) -> "GenerateRun":
        if not self.features:
            raise ValueError("features needs at least one artifact")
        if self.directions == "both" and not self.reverse_texts:
            raise ValueError("directions 'both' needs reverse_texts; set directions=forward or reverse_texts=true")
        return self


class IndexRun(Config):
    """Embed a gallery with a trained encoder and build its index."""

    checkpoint: str = "~/cirray/quickstart/checkpoint"
    """Checkpoint artifact whose encoder makes the vectors."""
    images: str | None = None
    """Folder of pictures to index, found by content, links followed.

    An id is the path below the folder, without suffix where that is unique. What cannot be read is
    rejected with a reason and counted; files that are no pictures by their names are left aside.
    """
    features: tuple[str, ...] = ("~/cirray/quickstart/features",)
    """Without `images`: features artifacts, made by the checkpoint's vision tower, that hold the gallery."""
    data: DataConfig | None = DataConfig()
    """With `features`: the data set whose gallery is indexed and whose files give the pictures; null indexes every
    stored image, without pictures."""
    index: IndexConfig = IndexConfig()
    """How the gallery is searched."""
    limits: ImageLimits = ImageLimits()
    """Caps on the pictures."""
    batch: int = Field(64, ge=1)
    """Images in one pass through the models."""
    shard: int = Field(1024, ge=1)
    """Images of one part; a killed run goes on after its last finished part."""
    pool: PoolConfig | None = None
    """Ray actors that encode parts; null encodes in this process, which is quicker for some thousands of images."""
    device: str = "cpu"
    """Where the models run."""
    ray: RayConfig = RayConfig()
    out: str = "~/cirray/quickstart/index"
    """Where the index is written (path or URI)."""


class TowersRun(Config):
    """Make or fetch the towers that stay frozen from then on: vision and language model."""

    vision: str = "asset"
    """`asset` (shipped, embedded world), `train`, a folder or hub id of BLIP-2, InstructBLIP or CLIP, a folder of
    open_clip, `open_clip:NAME=FILE` (an open_clip architecture and its weights), or CLIP4Cir's tuned .pt."""
    language: str = "asset"
    """`asset` (shipped, embedded world), `train`, or a folder or hub id of a causal language model."""
    clip_tokens: Literal["embedding", "all", "unprojected"] = "embedding"
    """What a CLIP tower gives: the image embedding alone (sum, Combiner), with projected tokens (cross-attention), or
    with the patches of the last block as they are (pseudo-words)."""
    vision_model: VisionTowerConfig = VisionTowerConfig()
    """Sizes of a trained vision tower."""
    transform: TransformConfig = TransformConfig()
    """How a trained vision tower's images are prepared; `size` is the tower's image size."""
    image_mode: Literal["", "target_pad", "squash", "center_crop"] = ""
    """How images of a fetched vision tower become square (SPRC and PTHA: `target_pad`); empty: as its own files say."""
    vision_training: VisionTrainingConfig = VisionTrainingConfig()
    """Pretraining of the vision tower."""
    language_model: LanguageModelConfig = LanguageModelConfig()
    """Sizes of a trained language model."""
    language_training: LanguageTrainingConfig = LanguageTrainingConfig()
    """Text-only pretraining of the language model."""
    corpus: Literal["shapes", "data"] = "shapes"
    """What a language model is trained on: the embedded world's grammar, or captions and training texts of `data`."""
    data: DataConfig = DataConfig()
    """Images, captions and texts; read only by `vision_training.objective=captions` and `corpus=data`."""
    limits: ImageLimits = ImageLimits()
    """Caps on images that are read."""
    device: str = "cpu"
    """Where the towers are trained."""
    out: str = "~/cirray/quickstart/towers"
    """Towers artifact (path or URI)."""


class RayTrainConfig(RayConfig):
    """Where training runs: Ray Train's workers, or this process (`enabled: false`: one function, equal numbers)."""

    num_workers: int = Field(1, ge=1)
    """Workers; they share the global batch, and the numbers do not depend on how many there are."""
    use_gpu: bool = False
    """One GPU for each worker."""
    cpus_per_worker: float = Field(1.0, gt=0)
    """Logical CPUs of a worker."""
    max_failures: int = Field(3, ge=0)
    """Restarts from the last checkpoint after a worker died."""
    storage: str = ""
    """Where checkpoints are kept for resuming (path or URI that all nodes reach). Default: beside the output."""
    poll_s: float = Field(0.5, gt=0)
    """How often Ray Train's controller looks after its workers."""
    start_timeout_s: float = Field(120.0, gt=0)
    """How long workers may take to start."""


class GeneratorRun(FrozenLanguageConfig):
    """Train the modification-text generator on the small labelled part."""

    data: DataConfig = DataConfig()
    """Triplets (split `train` trains, `val` evaluates) and captions."""
    towers: str = "~/cirray/quickstart/towers"
    """Towers artifact: vision tower and language model."""
    features: tuple[str, ...] = ("~/cirray/quickstart/features",)
    """Features artifacts that hold the labelled images; without any, they are encoded here."""
    language: str = ""
    """Another language model than the towers': a folder or hub id; a whole InstructBLIP checkpoint serves too."""
    qformer_source: str = ""
    """A BLIP-2 or InstructBLIP checkpoint (folder or hub id) whose Q-Former and projection are the start weights; its
    sizes replace those of `model.qformer`."""
    source_projection: bool = True
    """Start the projection from `qformer_source` too; false: at random, for another language model than its own."""
    model: GeneratorConfig = GeneratorConfig()
    """The network."""
    labels: int | None = Field(None, ge=1)
    """Use only the first so many training triplets (whole families), and the captions of their images."""
    alignment: Literal["auto", "bags", "captions", "none"] = "auto"
    """Before any label: soft tokens to the cells' phrases (`bags`, captions of the embedded world), or captions through
    the language model (`captions`), or nothing. `auto` takes the first that the captions allow."""
    alignment_training: AlignmentConfig = AlignmentConfig()
    """Alignment's loop."""
    training: AnswerTrainingConfig = AnswerTrainingConfig()
    """Training on the labelled triplets."""
    decoding: DecodingConfig = DecodingConfig()
    """Decoding of the evaluation."""
    evaluate_pairs: int = Field(400, ge=0)
    """Held-out pairs whose texts are written and, where scenes are known, judged, in both directions."""
    zero_shot: bool = True
    """Also evaluate before any labelled triplet was seen."""
    scenes: str = "auto"
    """Root of a shapes world whose scenes judge the texts; `auto`: the data's root when it has scenes; empty: none."""
    guard: tuple[DataConfig, ...] = ()
    """Benchmarks whose val and test images must not be among these; they are refused with the list."""
    allow_leaks: bool = False
    """Go on with such images all the same; the manifest records them."""
    limits: ImageLimits = ImageLimits()
    """Caps on images that are read."""
    device: str = "cpu"
    """Where the generator is trained."""
    seed: int = Field(0, ge=0)
    """Start weights; the loops have seeds of their own."""
    out: str = "~/cirray/quickstart/generator"
    """Generator artifact (path or URI)."""
    ray: RayTrainConfig | None = None
    """Ray Train's workers for both loops, or null: this process. Texts are evaluated by this process on `device`."""

    _fits = model_validator(mode="after")(check_language)
    _said = field_serializer("model", mode="wrap")(given_beside("qformer_source"))

    @model_validator(mode="after")
    def _shared(self) -> "GeneratorRun":
        workers = self.ray.num_workers if self.ray and self.ray.enabled else 0
        for name, loop in (("alignment_training", self.alignment_training), ("training", self.training)):
            if workers and loop.batch % workers:
                raise ValueError(f"{name}.batch {loop.batch} does not divide by ray.num_workers {workers}")
            if not workers and loop.engine != "torch":
                raise ValueError(f"{name}.engine {loop.engine!r} needs workers; set ray.num_workers or engine=torch")
        return self


class TrainRun(Config):
    """Train a retriever on triplets: generated ones, the data set's labelled ones, or both."""

    data: DataConfig | None = DataConfig()
    """Labelled triplets, held-out triplets and captions; null when none of these is used."""
    labels: int | None = Field(None, ge=0)
    """Train on the first so many labelled triplets (whole families); null: on all; 0: on none."""
    triplets: tuple[str, ...] = ()
    """Triplets artifacts to train on."""
    reverse_texts: tuple[str, ...] = ()
    """Triplets artifacts whose texts become the labelled triplets' reverse texts, joined by reference and target."""
    features: tuple[str, ...] = ("~/cirray/quickstart/features",)
    """Features artifacts with every image of the triplets; empty: images are encoded while training, by `towers`."""
    images: tuple[DataConfig, ...] = ()
    """Without features: further data sets whose image files are read, for triplets on other images than `data`'s."""
    towers: str = "~/cirray/quickstart/towers"
    """Towers or checkpoint artifact with the vision tower that made the features; it is copied into the checkpoint."""
    init: str = ""
    """Checkpoint artifact to start from; empty: random weights of `model`'s sizes."""
    qformer_source: str = ""
    """Instead of `init`: a BLIP-2 or InstructBLIP checkpoint (folder or hub id) whose Q-Former, projections and
    tokenizer are the start, or what `cirray convert` made of one."""
    model: RetrieverConfig = RetrieverConfig()
    """The network. With `init`, fields that are given change what the checkpoint has, where its weights allow it; with
    `qformer_source`, the checkpoint's own sizes hold."""
    dual: DualEncoderConfig | None = None
    """Instead of `model`: a dual encoder (CLIP, open_clip, or small from scratch) with a sum, Combiner or
    cross-attention head."""
    encoder: EncoderChoice | None = None
    """Instead of `model`: a retriever of another registered kind, also of another package."""
    tokenizer: str = ""
    """Folder or hub id of a BERT-style tokenizer; empty: the words of all training texts and captions. Not with `init`,
    which brings its own."""
    temperature: Annotated[float, Field(gt=0)] | Literal["source"] | None = None
    """Start temperature in place of the model's or the checkpoint's; source: that of `qformer_source`, refused where it
    has none (SPRC and MTST go on with BLIP-2's)."""
    training: TrainingConfig = TrainingConfig()
    """Objective, steps, optimiser, engine."""
    validation: ValidationConfig = ValidationConfig()
    """Recall on held-out triplets."""
    guard: tuple[DataConfig, ...] = ()
    """Benchmarks whose val and test images must not be among these; they are refused with the list."""
    allow_leaks: bool = False
    """Go on with such images all the same; the manifest records them."""
    device: str = "cpu"
    """Where the model is, when it is trained in this process."""
    out: str = "~/cirray/quickstart/checkpoint"
    """Checkpoint artifact (path or URI)."""
    ray: RayTrainConfig = RayTrainConfig()

    _said = field_serializer("model", mode="wrap")(given_beside("init", "qformer_source", "dual", "encoder"))

    @model_validator(mode="after")
    def _trainable(self) -> "TrainRun":
        if self.init and self.qformer_source:
            raise ValueError(
                "init and qformer_source both give start weights; empty one of them (init= or qformer_source=)"
            )
        if self.temperature == SOURCE and not self.qformer_source:
            raise ValueError("temperature=source is that of qformer_source; name one, or give a number")
        if self.dual is not None and self.encoder is not None:
            raise ValueError("dual and encoder both name a network; leave one of them out")
        if not self.features and self.data is None and not self.images:
            raise ValueError("features is empty, so images are encoded while training: name their files (data, images)")
        if not self.triplets and (self.data is None or self.labels == 0):
            raise ValueError("there is nothing to train on; name triplets artifacts, or data with labels other than 0")
        every, rows = self.validation.every, self.training.log_every
        if every and every % rows:
            raise ValueError(f"validation.every {every} must be a multiple of training.log_every {rows}")
        if self.ray.enabled and self.training.batch % self.ray.num_workers:
            raise ValueError(
                f"training.batch {self.training.batch} does not divide by ray.num_workers {self.ray.num_workers}"
            )
        return self


class PretrainRun(TrainRun):
    """Pretrain a retriever on generated triplets (MTST)."""

    labels: int | None = Field(0, ge=0)
    """Train also on the first so many labelled triplets (whole families); null: on all; 0: on none."""
    triplets: tuple[str, ...] = ("~/cirray/quickstart/synthetic",)
    """Triplets artifacts to train on."""
    training: TrainingConfig = TrainingConfig(objective="pretrain")
    """Objective, steps, optimiser, engine."""
    out: str = "~/cirray/quickstart/pretrained"
    """Checkpoint artifact (path or URI)."""


class FinetuneRun(TrainRun):
    """Fine-tune a retriever on labelled triplets, plainly or with PTHA."""

    reverse_texts: tuple[str, ...] = ("~/cirray/quickstart/reverse",)
    """Triplets artifacts whose texts become the labelled triplets' reverse texts, joined by reference and target."""
    init: str = "~/cirray/quickstart/pretrained"
    """Checkpoint artifact to start from; empty: random weights of `model`'s sizes."""
    training: TrainingConfig = TrainingConfig(objective="ptha")
    """Objective, steps, optimiser, engine."""


class TuneRun(Config):
    """Sweep fields of a training run (Ray Tune); every trial is a run like any other."""

    base: FinetuneRun = FinetuneRun(validation=ValidationConfig(every=50))
    """The run that is varied; its `out` is not used."""
    space: dict[str, SpaceConfig] = {
        "training.lambda_p": SpaceConfig(grid=(0.0, 0.1, 0.4)),
        "training.lambda_m": SpaceConfig(grid=(0.0, 0.4)),
    }
    """Dotted path inside `base` -> its values, e.g. `{training.optimizer.lr: {loguniform: [1e-4, 1e-2]}}`."""
    samples: int = Field(1, ge=1)
    """Draws of the random fields for every combination of the grids."""
    metric: str = "val_R@1"
    """What ranks the trials: a number of the history rows."""
    mode: Literal["max", "min"] = "max"
    """Whether large or small is good."""
    scheduler: Literal["asha", "median", "none"] = "asha"
    """Stop the worse trials early by successive halving, or those below the median of the others, or none."""
    grace_steps: int | None = Field(None, ge=1)
    """Steps before any trial is stopped; default: the first validation."""
    reduction_factor: int = Field(3, ge=2)
    """ASHA keeps one in so many at each rung."""
    trials: Literal["process", "train"] = "process"
    """A trial trains in one process of its own, or starts Ray Train workers as `base.ray` says."""
    cpus_per_trial: float = Field(1.0, gt=0)
    """Logical CPUs of a `process` trial."""
    gpus_per_trial: float = Field(0.0, ge=0)
    """GPUs of a `process` trial, which then trains on one."""
    max_concurrent: int | None = Field(None, ge=1)
    """Trials at a time; default and upper limit: as many as the cluster holds."""
    max_failures: int = Field(1, ge=0)
    """Restarts of a trial that crashed."""
    seed: int = Field(0, ge=0)
    """Draws of random fields, and the order of the trials."""
    out: str = "~/cirray/quickstart/sweep"
    """Sweep artifact (path or URI)."""
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _sweepable(self) -> "TuneRun":
        if not self.space:
            raise ValueError("space is empty; name at least one field, e.g. training.lambda_p: {grid: [0, 0.4]}")
        if self.base.validation.patience:
            raise ValueError("base.validation.patience and the sweep's scheduler both stop trials; leave it null")
        if self.metric.startswith("val_") and not self.base.validation.queries:
            raise ValueError(f"metric {self.metric!r} needs base.validation.queries above 0")
        if self.scheduler != "none" and not self.base.validation.every:
            raise ValueError(
                f"scheduler {self.scheduler!r} needs base.validation.every, so that trials can be compared on the way; "
                "or set scheduler=none"
            )
        return self
