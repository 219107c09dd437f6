"""Configuration of training; it names no method, nor what one sets (docs/RECIPES.md has that). No torch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from cirray.core.components import Component, SetOf, filed
from cirray.core.config import Config, standing_over
from cirray.core.errors import ConfigError
from cirray.core.fields import Common, Effort, Features, Known
from cirray.core.registry import Registry
from cirray.data.config import DataConfig
from cirray.training.terms.config import OBJECTIVES, TERMS, TermConfig

if TYPE_CHECKING:
    from cirray.training.mixing import MakeMixer
    from cirray.training.trackers import Tracker


TRACKERS: "Registry[type[Tracker]]" = Registry(
    "tracker", ["cirray.training.trackers"], dict.fromkeys(("tensorboard", "wandb", "mlflow"), Config)
)


class MixerConfig(Config):
    """What the settings of every policy can say; the settings of one that has none of its own."""

    def rows_per_step(self, batch: int) -> int:
        """Rows of a global batch of `batch` real ones; here: these alone."""
        return batch


class PairedConfig(MixerConfig):
    """Other rows beside each real one."""

    ratio: float = Field(1.0, ge=0, le=16)
    """Other rows for each real one (the paper's best: 1)."""

    def rows_per_step(self, batch: int) -> int:
        """The real rows and those beside them."""
        return batch + round(self.ratio * batch)


class CurriculumConfig(MixerConfig):
    """A share of real rows that moves while training."""

    shares: tuple[float, float] = (0.0, 1.0)
    """Share of real rows in a batch at the first and at the last step."""

    @model_validator(mode="after")
    def _in_range(self) -> "CurriculumConfig":
        if not all(0 <= share <= 1 for share in self.shares):
            raise ValueError(f"shares {self.shares} must be two shares in [0, 1]")
        return self


MIXERS: "Registry[MakeMixer]" = Registry(
    "mixing", ["cirray.training.mixing"],
    {"concat": MixerConfig, "paired": PairedConfig, "curriculum": CurriculumConfig}, MixerConfig,
)  # fmt: skip
"""Name -> policy that shares batches between real and pseudo rows."""


class Mixing(Component):
    """How real and other rows share a batch."""

    registry = MIXERS
    kind: str = "concat"
    """Name of the policy; `concat` shuffles all rows."""


class OptimizerConfig(Config):
    """AdamW and its learning-rate schedule."""

    lr: Common[float] = Field(1e-3, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(0.05, ge=0)
    """Decoupled weight decay."""
    decay: Literal["matrices", "all"] = "matrices"
    """What decays: weights of two dimensions or more, or every trained weight, including biases, norms and the
    temperature."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's moment decays."""
    eps: float = Field(1e-7, gt=0)
    """AdamW's epsilon."""
    schedule: Literal["one_cycle", "cosine", "constant", "step"] = "one_cycle"
    """One-cycle (cosine up, cosine down), linear warm-up with cosine down, linear warm-up and constant, or that with a
    tenth of the rate from half of the steps on (step)."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the schedule that warms up."""
    start_divisor: float = Field(25.0, ge=1)
    """One-cycle starts at lr / start_divisor."""
    final_divisor: float = Field(1e4, ge=1)
    """One-cycle would end at lr / start_divisor / final_divisor."""
    cycled_beta1: tuple[float, float] | None = None
    """One-cycle: beta1 where the rate is lowest and at its peak, in place of the first of `betas` (torch's
    `OneCycleLR`: 0.95, 0.85); null: it stays."""
    schedule_stretch: float = Field(1.0, ge=1)
    """Length of the schedule over the steps really taken: one sized for 80 epochs of which 50 are trained has 1.6."""
    clip: float | None = Field(1.0, gt=0)
    """Largest gradient norm, or null for no clipping."""
    fused: Effort[bool | Literal["auto"]] = "auto"
    """AdamW in one kernel; auto: with the torch engine where all weights lie on an accelerator."""

    @model_validator(mode="after")
    def _cycles(self) -> "OptimizerConfig":
        if self.cycled_beta1 is None:
            return self
        if self.schedule != "one_cycle":
            raise ValueError(f"cycled_beta1 goes with schedule one_cycle, not with {self.schedule}; set it to null")
        if not all(0 <= value < 1 for value in self.cycled_beta1):
            raise ValueError(f"cycled_beta1 {self.cycled_beta1} must be two decays in [0, 1), e.g. [0.95, 0.85]")
        return self


class LoopConfig(Config):
    """Settings of the training loop and its engines."""

    steps: Common[int] = Field(300, ge=1)
    """Optimiser steps."""
    batch: Common[int] = Field(128, ge=1)
    """Global batch size, over all workers."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW and schedule."""
    precision: Common[Literal["fp32", "bf16", "bf16_weights"]] = "fp32"
    """Of the forward pass (bf16: autocast), or of the weights too (bf16_weights), of which the optimiser then updates
    fp32 copies: engine torch, or deepspeed from zero_stage 1, where it saves memory."""
    engine: Annotated[Common[str], Known("torch", "deepspeed")] = "torch"
    """What runs the model and the optimiser."""
    zero_stage: int = Field(1, ge=0, le=3)
    """DeepSpeed's ZeRO stage."""
    deepspeed: dict[str, Any] = {}
    """Further DeepSpeed settings by its own names, over the engine's (offload, bucket sizes, communication)."""
    checkpoint_minutes: Effort[float | None] = Field(5.0, gt=0)
    """Minutes between checkpoints for resuming; null: by steps alone. There is one after the last step too."""
    checkpoint_every: Effort[int | None] = Field(None, ge=1)
    """Steps between further checkpoints, or null for none."""
    keep_checkpoints: Effort[int] = Field(2, ge=1)
    """Checkpoints kept on disk."""
    log_every: int = Field(10, ge=1)
    """Steps between history rows."""
    seed: Common[int] = Field(0, ge=0)
    """Seed of start weights, dropout and the order of rows."""
    compile: Effort[bool] = False
    """torch.compile the forward pass (engine torch): some minutes at the start, fewer kernels a step."""
    compile_backend: Effort[str] = "inductor"
    """torch.compile's backend; `inductor` needs a C++ compiler on a CPU, `eager` only traces."""

    @property
    def rows_per_step(self) -> int:
        """Rows of a global batch."""
        return self.batch

    @property
    def bf16(self) -> bool:
        """Whether the forward pass runs under autocast."""
        return self.precision != "fp32"


class PiecesConfig(LoopConfig):
    """A loop whose memory grows with the rows that are in the model at once."""

    pieces: Effort[int] = Field(1, ge=1)
    """Pieces that a worker's share of a batch goes through the model in, one after another: less memory, the same loss
    and gradient, also of losses that compare all rows of the batch, which then go through it twice (GradCache)."""

    @model_validator(mode="after")
    def _accumulates(self) -> "PiecesConfig":
        if self.pieces > self.batch:
            raise ValueError(f"pieces={self.pieces} is more than the batch of {self.batch}")
        return self


class TrainingConfig(PiecesConfig):
    """One training run of a retriever."""

    objective: Annotated[Common[str], Known(*OBJECTIVES)] = "finetune"
    """A named set of loss terms."""
    terms: Annotated[dict[str, SerializeAsAny[Config]], SetOf(TERMS)] = {}
    """Loss terms by name, each with its weight or its settings, over the objective's own: `{infonce: {weight: 0.5,
    label_smoothing: 0.1}}`. Weight 0 takes one out."""
    negatives: Literal["targets", "batch_images"] = "batch_images"
    """Candidates: the batch's targets, or all its images, the own reference included."""
    hard_negatives: int = Field(1, ge=0)
    """Hard negatives of every row (`negative_ids`) among the candidates, drawn anew each step, where rows have some."""
    mask_duplicates: bool = True
    """Hide other copies of a query's own target among the candidates."""
    one_per_group: bool | Literal["auto"] = "auto"
    """At most one triplet of a group (image family) in a batch; auto: where there are groups enough to fill one."""
    chunk: Effort[Annotated[int, Field(ge=1)] | Literal["auto"] | None] = "auto"
    """Rows of a tile of the contrastive losses' scores: memory of a tile in place of the whole matrix, same gradient.
    auto: tiles where the matrix is large; null: always the whole."""
    swapped: bool = False
    """Also train on (target, reverse text, reference) where there is a reverse text; an ablation."""
    shuffle_rows: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Rows that are mixed with one another: all, or windows of so many, made of blocks of 1,024 neighbouring rows from
    all over. auto: all of up to 2,000,000 rows; beyond, windows of 1,000,000, or of 64 batches if that is more."""
    mixing: Mixing = Mixing()
    """How real and other rows share a batch."""
    real_sources: tuple[str, ...] = ("human",)
    """Source tags of the real rows; every other row is a pseudo row."""
    row_weights: Literal["flat", "real_twice"] = "flat"
    """Every row as its own weight says, or the real rows alone plus all rows together."""
    pair_texts: Literal["rows", "drawn"] = "rows"
    """Every text is a row of its own, or all texts of one (reference, target) are one row, of which each visit draws
    one in proportion to the weights."""

    @property
    def rows_per_step(self) -> int:
        """Rows of a global batch; the mixing may put others beside its `batch` ones."""
        mixer = self.mixing.settings
        return mixer.rows_per_step(self.batch) if isinstance(mixer, MixerConfig) else self.batch

    @property
    def active_terms(self) -> dict[str, TermConfig]:
        """The terms that are part of the loss, by name."""
        found = {name: term for name, term in self.terms.items() if isinstance(term, TermConfig)}
        return {name: term for name, term in found.items() if term.weight}

    @model_validator(mode="before")
    @classmethod
    def _over_the_objective(cls, tree: Any) -> Any:
        """The objective's terms, with those that are given laid over them."""
        if not isinstance(tree, Mapping) or not isinstance(tree.get("terms", {}), Mapping):
            return tree
        objective = tree.get("objective", cls.model_fields["objective"].default)
        try:
            own = OBJECTIVES.get(objective)
        except (ConfigError, TypeError):
            return tree  # the field's own check says so
        return {**tree, "terms": standing_over(own, tree.get("terms", {}))}

    @field_validator("objective")
    @classmethod
    def _known(cls, objective: str) -> str:
        filed(OBJECTIVES.get, objective)
        return objective

    @model_validator(mode="after")
    def _fits(self) -> "TrainingConfig":
        if self.negatives == "targets" and self.batch < 2:
            raise ValueError(f"batch {self.batch} leaves no negative; in-batch contrast needs batch >= 2")
        if not self.active_terms:
            raise ValueError(f"terms {', '.join(self.terms)} all have weight 0; give one a weight above 0")
        for term in self.active_terms.values():
            term.check(self)
        return self


class AlignmentConfig(PiecesConfig):
    """Alignment of the soft tokens with captions, before any labelled triplet."""

    data: DataConfig | None = None
    """Another data set to take captions from (such as CC3M); null: the generator's own."""
    features: tuple[Features, ...] = ()
    """With `data`: features artifacts that hold its images."""

    steps: int = Field(300, ge=1)
    """Optimiser steps."""
    batch: int = Field(128, ge=1)
    """Images per step."""
    optimizer: OptimizerConfig = OptimizerConfig(lr=4e-3)
    """AdamW and schedule."""


class AnswerTrainingConfig(PiecesConfig):
    """Training of the aligned generator on labelled triplets."""

    steps: int = Field(240, ge=0)
    """Optimiser steps; 0 leaves it aligned with captions alone."""
    batch: int = Field(64, ge=1)
    """Triplets per step."""
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-4)
    """AdamW and schedule. A rate of 1e-3 damages an aligned start, and 3e-4 costs a point or two (`docs/LOG.md`)."""


class SpaceConfig(Config):
    """Values of one swept field: exactly one of the five."""

    grid: tuple[str | int | float | bool | None, ...] | None = None
    """Every value, combined with every value of the other grids."""
    choice: tuple[str | int | float | bool | None, ...] | None = None
    """One of these, drawn evenly."""
    uniform: tuple[float, float] | None = None
    """A number between the two."""
    loguniform: tuple[float, float] | None = None
    """A number between the two, its logarithm drawn evenly."""
    randint: tuple[int, int] | None = None
    """A whole number from the first to the second, both included."""

    @model_validator(mode="after")
    def _one(self) -> "SpaceConfig":
        given = {name: value for name, value in self.to_dict().items() if value is not None}
        if len(given) != 1:
            names = ", ".join(given) or "none"
            raise ValueError(f"give exactly one of grid, choice, uniform, loguniform, randint; {names} given")
        kind, values = next(iter(given.items()))
        if kind in ("grid", "choice") and not values:
            raise ValueError(f"{kind} needs at least one value")
        if kind not in ("grid", "choice") and not values[0] <= values[1]:
            raise ValueError(f"{kind} goes from the smaller to the larger number, found {values}")
        if kind == "loguniform" and values[0] <= 0:
            raise ValueError(f"loguniform needs positive numbers, found {values}")
        return self

    @property
    def kind(self) -> str:
        """Name of the one that is set."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)
