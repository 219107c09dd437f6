"""Configuration of training stages and sweeps. No torch, no ray."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_serializer, field_validator, model_validator

from cirray.core.components import filed
from cirray.core.config import Config, annotation_at, given_beside
from cirray.core.fields import Common, Effort, Features, Kind, Place
from cirray.core.places import Run
from cirray.core.reading import read
from cirray.core.typed import Typed, collection
from cirray.data.config import DataConfig
from cirray.models.config import Encoder
from cirray.pipelines.cluster.config import RayConfig, RayTrainConfig
from cirray.training.config import TRACKERS, SpaceConfig, TrainingConfig

Triplets = Annotated[Place, Kind("triplets")]
BENCHMARK = "benchmark"
SPLIT, SLICE = "val_", "held_"
"""Beginnings of the figures' names: on the data set's split, and on the slice of the training triplets."""


class ValidationConfig(Config):
    """Recall on held-out triplets while training: each is a query, their images the gallery.

    The papers keep the last weights, or choose them on the very split they report (`queries: benchmark`). Here a slice
    of the training triplets may be held out to choose by (`held_out`, `keep`), and the split's figures are logged
    beside it.
    """

    queries: Common[Annotated[int, Field(ge=0)] | Literal["benchmark"]] = 400
    """Number of held-out triplets measured; 0: none. They are the first of the data set. `benchmark`: all its queries,
    with its own galleries and figures (CIRR: val_R@5, val_Rs@1, val_Avg ...; Fashion IQ: val_Avg ...)."""
    split: str = "val"
    """Split of the held-out triplets (a benchmark's is chosen in `data`)."""
    every: Common[int | None] = Field(None, ge=1)
    """Steps between measurements; null: at the end only. A multiple of training.log_every."""
    batch: Effort[int] = Field(128, ge=1)
    """Images and queries per forward pass."""
    ks: tuple[int, ...] = (1, 5, 10)
    """Cut-offs of recall (a benchmark has its own)."""
    held_out: int = Field(0, ge=0)
    """Labelled training triplets (whole families, drawn by their names) that are taken out of training and measured
    too, as `held_R@1` and so on; 0: none."""
    keep: tuple[str, ...] = ()
    """Keep the weights of the measurement with the best mean of these figures, e.g. [held_R@1, held_R@5]; empty: those
    of the last step. `val_R@1` and the like choose on the split itself, as some papers do."""
    patience: int | None = Field(None, ge=1)
    """With `keep`: stop after this many measurements in a row without a better one; null: never."""

    @model_validator(mode="after")
    def _measured(self) -> "ValidationConfig":
        if not self.ks or min(self.ks) < 1:
            raise ValueError(f"ks {list(self.ks)} must be at least one cut-off, each 1 or more")
        if self.patience and not self.keep:
            raise ValueError("patience needs figures to wait for; name some in keep, e.g. [held_R@1]")
        if (self.keep or self.held_out) and not self.every:
            raise ValueError("keep and held_out need measurements on the way; set every, e.g. to the steps of an epoch")
        for name in self.keep:
            self._check(name)
        return self

    def _check(self, name: str) -> None:
        if self.queries == BENCHMARK and name.startswith(SPLIT):
            return  # only the data set knows its figures; training checks them before its first step
        known = [f"{part}R@{k}" for part in (SPLIT, SLICE) for k in self.ks]
        if name not in known:
            raise ValueError(f"keep has {name!r}, which is not measured; known: {', '.join(known)}")
        if name.startswith(SPLIT) and not self.queries:
            raise ValueError(f"keep has {name!r}, but queries=0 measures nothing on the split")
        if name.startswith(SLICE) and not self.held_out:
            raise ValueError(f"keep has {name!r}, but held_out=0 leaves no slice; set held_out, e.g. 1000")


SOURCE = "source"
"""`temperature: source`: the one of the checkpoint that gives the start weights."""


class TrainRun(Run):
    """Train a retriever on triplets: generated ones, the data set's labelled ones, or both."""

    data: DataConfig | None = DataConfig()
    """Labelled triplets, held-out triplets and captions; null when none of these is used."""
    labels: int | None = Field(None, ge=0)
    """Number of labelled triplets to train on; null: all. They are the first ones, families stay whole."""
    triplets: tuple[Triplets, ...] = ()
    """Triplets artifacts to train on."""
    reverse_texts: tuple[Triplets, ...] = ()
    """Triplets artifacts with the labelled triplets' reverse texts. They are joined by reference and target."""
    features: tuple[Features, ...] = ("@features",)
    """Features artifacts of the triplets' images; empty: `towers` encodes them while training."""
    images: tuple[DataConfig, ...] = ()
    """Data sets of further images, where images are encoded while training."""
    towers: Place = "@towers"
    """Artifact with the vision tower that made the features. The tower is copied into the checkpoint."""
    init: Annotated[Place, Kind("checkpoint")] = ""
    """Checkpoint artifact to start from; empty: random weights."""
    qformer_source: Place = ""
    """BLIP-2 or InstructBLIP checkpoint to start from. A folder or hub id, or what `cirray convert` made of one, in
    place of `init`; Q-Former, projections and tokenizer are the start."""
    encoder: Encoder = Encoder()
    """The network. With `init`, settings that are given change what the checkpoint has, where its weights allow it;
    with `qformer_source`, the checkpoint's own sizes hold."""
    tokenizer: Place = ""
    """Folder or hub id of a BERT tokenizer; empty: the words of all training texts and captions. Not with `init`, which
    brings its own."""
    temperature: Annotated[float, Field(gt=0)] | Literal["source"] | None = None
    """Start temperature; null: the model's or the checkpoint's. `source`: that of `qformer_source`, refused where it
    has none."""
    training: TrainingConfig = TrainingConfig()
    """Objective, steps, optimiser, engine."""
    validation: ValidationConfig = ValidationConfig()
    """Recall on held-out triplets."""
    guard: tuple[DataConfig, ...] = ()
    """Benchmarks whose val and test images must not be used; a run that would use some is refused, with a list."""
    allow_leaks: Effort[bool] = False
    """Go on although images of a benchmark in `guard` are used; the manifest records them."""
    trackers: Effort[tuple[str, ...]] = ("tensorboard",)
    """Programs that show the history while it grows: `tensorboard` (a folder in the checkpoint), `wandb`, `mlflow`; the
    latter two go where their own settings say (WANDB_PROJECT, MLFLOW_TRACKING_URI)."""
    device: Effort[str] = "cpu"
    """Device of a training in this process."""
    out: Place = "@checkpoint"
    """Checkpoint artifact (path or URI)."""
    ray: Effort[RayTrainConfig] = RayTrainConfig()

    @field_validator("trackers")
    @classmethod
    def _known(cls, trackers: tuple[str, ...]) -> tuple[str, ...]:
        for name in trackers:
            filed(TRACKERS.settings, name)
        return trackers

    _said = field_serializer("encoder", mode="wrap")(given_beside("init", "qformer_source"))

    @model_validator(mode="after")
    def _trainable(self) -> "TrainRun":
        if self.init and self.qformer_source:
            raise ValueError(
                "init and qformer_source both give start weights; empty one of them (init= or qformer_source=)"
            )
        if self.temperature == SOURCE and not self.qformer_source:
            raise ValueError("temperature=source is that of qformer_source; name one, or give a number")
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
    """Pretrain a retriever on generated triplets."""

    labels: int | None = Field(0, ge=0)
    """Number of labelled triplets to train on as well; null: all. They are the first ones, families stay whole."""
    triplets: tuple[Triplets, ...] = ("@synthetic",)
    """Triplets artifacts to train on."""
    training: TrainingConfig = TrainingConfig(objective="pretrain")
    """Objective, steps, optimiser, engine."""
    out: Place = "@pretrained"
    """Checkpoint artifact (path or URI)."""


class FinetuneRun(TrainRun):
    """Fine-tune a retriever on labelled triplets."""

    reverse_texts: tuple[Triplets, ...] = ("@reverse",)
    """Triplets artifacts with the labelled triplets' reverse texts. They are joined by reference and target."""
    init: Annotated[Place, Kind("checkpoint")] = "@pretrained"
    """Checkpoint artifact to start from; empty: random weights."""
    training: TrainingConfig = TrainingConfig(objective="ptha")
    """Objective, steps, optimiser, engine."""


class TuneRun(Run):
    """Sweep fields of a training run (Ray Tune); every trial is a run like any other."""

    base: FinetuneRun = FinetuneRun(root="", validation=ValidationConfig(every=50))
    """The run that is varied; its `out` is not used."""
    space: dict[str, SpaceConfig] = {
        "training.terms.two_hop.weight": SpaceConfig(grid=(0.0, 0.1, 0.4)),
        "training.terms.rtc.weight": SpaceConfig(grid=(0.0, 0.4)),
    }
    """Dotted path inside `base` -> its values, e.g. `{training.optimizer.lr: {loguniform: [1e-4, 1e-2]}}`."""
    samples: int = Field(1, ge=1)
    """Draws of random fields for every combination of the grids."""
    metric: str = "val_R@1"
    """Figure of the history rows that ranks the trials."""
    mode: Literal["max", "min"] = "max"
    """Whether large or small is good."""
    scheduler: Literal["asha", "median", "none"] = "asha"
    """What stops worse trials early: successive halving, or falling below the others' median."""
    grace_steps: int | None = Field(None, ge=1)
    """Steps before any trial is stopped; null: until the first validation."""
    reduction_factor: int = Field(3, ge=2)
    """ASHA keeps one trial in this many at each rung."""
    trials: Effort[Literal["process", "train"]] = "process"
    """Where a trial trains: in one process, or on Ray Train workers as `base.ray` says."""
    cpus_per_trial: Effort[float] = Field(1.0, gt=0)
    """Logical CPUs of a `process` trial."""
    gpus_per_trial: Effort[float] = Field(0.0, ge=0)
    """GPUs of a `process` trial, which then trains on one."""
    max_concurrent: Effort[int | None] = Field(None, ge=1)
    """Most trials at a time; null: as many as the cluster holds."""
    max_failures: Effort[int] = Field(1, ge=0)
    """Restarts of a trial that crashed."""
    seed: int = Field(0, ge=0)
    """Seed of random fields and of the order of trials."""
    out: Place = "@sweep"
    """Sweep artifact (path or URI)."""
    ray: Effort[RayConfig] = RayConfig()

    @field_validator("space", mode="before")
    @classmethod
    def _as_base_reads(cls, space: Any, info: ValidationInfo) -> Any:
        """The listed values of every swept field, read as that field of `base` reads them."""
        base = info.data.get("base")
        if not isinstance(space, Mapping) or base is None:
            return space
        return {path: _listed(annotation_at(base, path), values) for path, values in _by_path(space)}

    @model_validator(mode="after")
    def _sweepable(self) -> "TuneRun":
        if not self.space:
            raise ValueError(
                "space is empty; name at least one field, e.g. training.optimizer.lr: {grid: [1e-4, 1e-3]}"
            )
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


def _by_path(space: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values of every swept field; `space.training.steps.grid=[...]` on a command line made sections of its path."""
    for name, given in space.items():
        values = collection(given) or given if isinstance(given, Typed) else given
        if isinstance(values, Mapping) and values and not values.keys() & SpaceConfig.model_fields.keys():
            yield from _by_path(values, f"{prefix}{name}.")
        else:
            yield prefix + name, values


def _listed(annotation: Any, values: Any) -> Any:
    if not isinstance(values, Mapping):
        return values
    lists: Any = tuple[annotation, ...] | None
    return {kind: read(lists, item) if kind in ("grid", "choice") else item for kind, item in values.items()}
