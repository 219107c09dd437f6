"""Settings of the loss terms, each term's own class, and the objectives made of them. No torch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from cirray.core.config import Config
from cirray.core.fields import Effort, Place
from cirray.core.registry import Registry

if TYPE_CHECKING:
    from cirray.training.config import TrainingConfig
    from cirray.training.terms.base import Term


class TermConfig(Config):
    """Base of all terms' settings, and the settings of a term without its own."""

    weight: float = Field(1.0, ge=0)
    """Factor of the term in the loss; 0 takes it out."""

    @property
    def query_part(self) -> str:
        """Trained part of the query side when the target side is frozen; empty: both sides are one."""
        return ""

    def check(self, training: "TrainingConfig") -> None:
        """Check the training that the term is part of; by default nothing.

        Raises ValueError naming what does not fit the term.
        """

    def without_data(self) -> Self:
        """The settings for a step on made-up rows (`cirray plan`); weight 0 if the term needs real images."""
        return self

    def kept_bytes(self, images: int, numbers: int, workers: int) -> int:
        """Memory of the term on each worker, beside model and batch, in bytes; `numbers` are an image's numbers."""
        return 0


class InfoNCEConfig(TermConfig):
    """The main contrastive term."""

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target's mass spread over all candidates (PTHA's released code: 0.1; measured harmful on the
    embedded world)."""


class PrototypeConfig(TermConfig):
    """A term that draws the mean prototype to another vector."""

    distance: Literal["mse", "cosine"] = "mse"
    """Distance of the two means; the papers' is the mean squared error."""


class TwoHopConfig(PrototypeConfig):
    """PTHA's term: the forward prototype is drawn towards the reverse one."""

    missing_reverse: Literal["skip", "error"] = "skip"
    """Rows without a reverse text: skipped (improved), or an error (paper)."""

    def without_data(self) -> Self:
        """Made-up rows never lack a reverse text."""
        return self.model_copy(update={"missing_reverse": "skip"})


class HardNegativeConfig(TermConfig):
    """VDG's contrast in which harder negatives weigh more."""

    alpha: float = Field(1.0, gt=0)
    """Factor of the positive in the denominator (VDG: 1)."""
    beta: float = Field(0.0, ge=0)
    """How much harder negatives weigh more (VDG: 0 with the Combiner, 0.5 with BLIP)."""
    detach_weights: bool = False
    """Hold the negatives' weights fixed in the backward pass; the paper's are differentiable."""


class ConcatenatedConfig(HardNegativeConfig):
    """VDG's contrast of the real rows alone, and of all rows together."""

    def check(self, training: "TrainingConfig") -> None:
        """Refuse to count real rows twice in two ways. Raises ValueError: beside `row_weights: real_twice`."""
        if training.row_weights == "real_twice":
            raise ValueError("row_weights real_twice counts real rows twice, which the term tcc does already; use flat")


class MatchingConfig(TermConfig):
    """VDG's target-delta matching."""

    def check(self, training: "TrainingConfig") -> None:
        """Refuse pieces. Raises ValueError: as wrong images and texts are drawn from the whole batch."""
        if training.pieces > 1:
            raise ValueError(
                f"pieces={training.pieces} does not go with the terms tdm and tdm_hard, whose model draws wrong images "
                "from the whole batch; set pieces=1, or leave them out"
            )


class BankConfig(TermConfig):
    """SPN's term: all training images as negatives, encoded once by the frozen target side."""

    trains: Literal["query_side", "second_pass"] = "query_side"
    """Trained part of a Q-Former retriever, apart from the frozen target side: the whole query side (improved), or only
    its second, text-only pass (paper)."""
    duplicate_cosine: float | None = Field(0.98, gt=-1, le=1)
    """Hide bank images whose cosine with the own target is above this (improved); null hides none (paper)."""
    mask_same_image: bool = True
    """Hide images whose features equal the own target's byte for byte: one picture under two ids."""
    mask_known: bool = False
    """Hide the other targets of triplets with the same reference and text."""
    neg_num: int | None = Field(None, ge=1)
    """Negatives of the bank per query, drawn anew each step; null: all."""
    extra_ids: Place = ""
    """A text file of further image ids for the bank, one a line; their features must be there."""
    half: bool = False
    """Keep the bank in fp16: half the memory, cosines to three digits."""
    sharded: Effort[bool | Literal["auto"]] = "auto"
    """Each worker holds a share of the rows; auto: if the whole bank is above `replicate_gb`."""
    replicate_gb: Effort[float] = Field(1.0, gt=0)
    """Size up to which every worker holds the whole bank."""
    chunk: Effort[int] = Field(4096, ge=1)
    """Bank rows per block of scores."""
    learn_temperature: bool = False
    """Let the bank's loss train the temperature; false keeps the start's, or that of `temperature`."""
    temperature_clamp: tuple[float, float] | None = (0.01, 0.1)
    """Range of a learned temperature, or null for a free one (paper)."""

    @property
    def query_part(self) -> str:
        """As `trains` says."""
        return self.trains

    def check(self, training: "TrainingConfig") -> None:
        """Refuse an engine that partitions the weights which encode the bank. Raises ValueError: for ZeRO 3."""
        if training.engine == "deepspeed" and training.zero_stage == 3:
            raise ValueError(
                "zero_stage 3 leaves no whole weights outside a step, where bank_infonce encodes its bank; set "
                "training.zero_stage to 2 or less"
            )

    def without_data(self) -> Self:
        """The bank is made of the images."""
        return self.model_copy(update={"weight": 0.0})

    def kept_bytes(self, images: int, numbers: int, workers: int) -> int:
        """The bank's share: every training image as the target side encodes it."""
        whole = images * numbers * (2 if self.half else 4)
        sharded = whole > self.replicate_gb * 1e9 if self.sharded == "auto" else self.sharded
        return -(-whole // workers) if sharded else whole


class ComposingConfig(TermConfig):
    """Stage 2 of two-stage zero-shot retrieval: the negatives of a query beside the batch's targets."""

    reference: bool = True
    """The own reference is always a negative, unless it is the target."""
    hard: int = Field(5, ge=0)
    """Images per query, drawn anew in every epoch from the hard negatives that its row brings, or mined where it brings
    none; 0: none."""
    ranks: tuple[int, int] = (2, 50)
    """First and last rank, from 1, in the start weights' ranking, to draw them from."""
    max_cosine: float = Field(0.9, le=1)
    """Images nearer to the target than this are never drawn: they may show the same."""

    def without_data(self) -> Self:
        """Hard negatives are mined among the images."""
        return self.model_copy(update={"weight": 0.0})

    @model_validator(mode="after")
    def _rising(self) -> "ComposingConfig":
        if not 1 <= self.ranks[0] <= self.ranks[1]:
            raise ValueError(f"ranks {self.ranks} must be two rising numbers from 1")
        return self


_MODULES = (
    "bank_infonce", "composing", "hard_negative", "infonce", "matching", "prompt_align", "retention",
    "retention_distill", "rtc", "rtd_doubling", "two_hop",
)  # fmt: skip
TERMS: "Registry[type[Term[Any]]]" = Registry(
    "loss term", [f"cirray.training.terms.{name}" for name in _MODULES],
    {
        "infonce": InfoNCEConfig, "rtc": TermConfig, "prompt_align": PrototypeConfig, "two_hop": TwoHopConfig,
        "bank_infonce": BankConfig, "hn_nce": HardNegativeConfig, "tcc": ConcatenatedConfig, "tdm": MatchingConfig,
        "tdm_hard": MatchingConfig, "composing": ComposingConfig, "retention": TermConfig,
        "retention_distill": TermConfig, "rtd_doubling": TermConfig,
    },
    TermConfig,
)  # fmt: skip
"""Name -> term; the name is in the history and on the curves."""

Terms = Mapping[str, Any]
"""Terms by name, each with its weight or its settings: `{"infonce": 1.0, "two_hop": {"distance": "cosine"}}`."""
OBJECTIVES: Registry[Terms] = Registry("objective")
"""Name -> the terms of a method's loss.

PTHA: L = L_q2t + lambda_m L_m2t + lambda_p L_p2p; pretraining and plain fine-tuning are L_q2t alone. SPRC has the same
first two terms; in place of L_p2p it draws the mean prototype to the mean of its learned prompts. VDG: L_tcc, and L_tdm
where `training.terms` adds it. Papers: docs/PAPERS.md.
"""
OBJECTIVES.register("pretrain")({"infonce": 1.0})
OBJECTIVES.register("finetune")({"infonce": 1.0})
OBJECTIVES.register("sprc")({"infonce": 1.0, "rtc": 0.4, "prompt_align": 0.4})
OBJECTIVES.register("ptha")({"infonce": 1.0, "rtc": 0.4, "two_hop": 0.4})
OBJECTIVES.register("spn")({"bank_infonce": 1.0})
OBJECTIVES.register("vdg")({"tcc": 1.0})
OBJECTIVES.register("composing")({"composing": 1.0, "retention": 0.5})
