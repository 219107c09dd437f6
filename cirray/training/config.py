"""Configuration of training. No torch."""

from typing import Any, Literal

from pydantic import Field, model_validator

from cirray.core.config import Config


class OptimizerConfig(Config):
    """AdamW and its learning-rate schedule."""

    lr: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(0.05, ge=0)
    """Decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's moment decays (SPRC and PTHA: 0.9, 0.98)."""
    eps: float = Field(1e-7, gt=0)
    """AdamW's epsilon."""
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    """One-cycle (cosine up, cosine down), linear warm-up with cosine down, or linear warm-up and constant."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the schedule that warms up."""
    start_divisor: float = Field(25.0, ge=1)
    """One-cycle starts at lr / start_divisor (PTHA: CIRR 25, FashionIQ 100)."""
    final_divisor: float = Field(1e4, ge=1)
    """One-cycle would end at lr / start_divisor / final_divisor."""
    schedule_stretch: float = Field(1.0, ge=1)
    """Length of the schedule over the steps really taken (the released PTHA code sizes 80 epochs for 50: 1.6)."""
    clip: float | None = Field(1.0, gt=0)
    """Largest gradient norm, or null for no clipping (paper)."""


class LoopConfig(Config):
    """What the one training loop and its engines need, whatever the task."""

    steps: int = Field(300, ge=1)
    """Optimiser steps."""
    batch: int = Field(128, ge=1)
    """Global batch size, over all workers."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW and schedule."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs the forward pass under autocast; weights and optimiser stay fp32."""
    engine: str = "torch"
    """Name of the engine: "torch" or "deepspeed"."""
    zero_stage: int = Field(1, ge=0, le=3)
    """DeepSpeed's ZeRO stage."""
    deepspeed: dict[str, Any] = {}
    """Further DeepSpeed settings in its own words, over the engine's (offload, bucket sizes, communication)."""
    checkpoint_every: int | None = Field(None, ge=1)
    """Steps between checkpoints for resuming, or null for the last step only."""
    keep_checkpoints: int = Field(2, ge=1)
    """Checkpoints kept on disk."""
    log_every: int = Field(10, ge=1)
    """Steps between history rows."""
    seed: int = Field(0, ge=0)
    """Order of the rows, dropout and start weights follow from it."""


class ComposingConfig(Config):
    """The composing stage of two-stage zero-shot retrieval: which negatives a query has beside the batch's targets."""

    reference: bool = True
    """The own reference is always a negative (it leaves where it is the target)."""
    hard: int = Field(5, ge=0)
    """Mined images of its own, drawn anew in every epoch; 0: none."""
    ranks: tuple[int, int] = (2, 50)
    """First and last rank, from 1, of the start weights' ranking that they are drawn from."""
    max_cosine: float = Field(0.9, le=1)
    """Images nearer to the target than this are never drawn: they may show the same."""
    lambda_ret: float = Field(0.5, ge=0)
    """Weight of the retention term in objective composing."""

    @model_validator(mode="after")
    def _rising(self) -> "ComposingConfig":
        if not 1 <= self.ranks[0] <= self.ranks[1]:
            raise ValueError(f"ranks {self.ranks} must be two rising numbers from 1")
        return self


class TrainingConfig(LoopConfig):
    """One training run of a retriever."""

    objective: str = "finetune"
    """A named set of loss terms. pretrain: contrastive only, reverse texts ignored. finetune: same loss. sprc: with a
    text-only branch, prototypes drawn to learned prompts. ptha: two-hop alignment, section 5. composing: stage 2 of
    two-stage zero-shot retrieval."""
    terms: dict[str, float] = {}
    """Weights of single loss terms over the objective's own: adds a term, or takes one out with weight 0."""
    lambda_m: float = Field(0.4, ge=0)
    """Weight of the text-only branch (ptha, sprc)."""
    lambda_p: float = Field(0.4, ge=0)
    """Weight of the prototype term: towards the reverse prototype (ptha), or the learned prompts (sprc)."""
    prototype_loss: Literal["mse", "cosine"] = "mse"
    """Distance of the prototype term; the paper's is the plain mean squared error."""
    composing: ComposingConfig = ComposingConfig()
    """Negatives and retention (composing)."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Smoothing of the main contrastive term (PTHA's released code: 0.1; measured harmful on the embedded world)."""
    negatives: Literal["targets", "batch_images"] = "batch_images"
    """Candidates: the batch's targets (paper), or all its images, the own reference included (improved)."""
    mask_duplicates: bool = True
    """Hide other copies of a query's own target among the candidates (improved); the paper leaves them."""
    one_per_group: bool | Literal["auto"] = "auto"
    """At most one triplet of a group (image family) in a batch; auto: where there are groups enough to fill one."""
    chunk: int | None = Field(None, ge=1)
    """Rows per block of the contrastive loss (less memory, same gradient), or null for the full matrix."""
    swapped: bool = False
    """Also train on (target, reverse text, reference) where there is a reverse text; an ablation, off in the method."""
    missing_reverse: Literal["skip", "error"] = "skip"
    """ptha rows without a reverse text: skipped by the prototype term (improved) or an error (paper)."""

    @model_validator(mode="after")
    def _fits(self) -> "TrainingConfig":
        if self.negatives == "targets" and self.batch < 2:
            raise ValueError(f"batch {self.batch} leaves no negative; in-batch contrast needs batch >= 2")
        return self

    @classmethod
    def for_mode(cls, mode: Literal["improved", "paper"], **fields: object) -> "TrainingConfig":
        """Settings of one mode (design document, section 6); `fields` override single ones.

        Args:
            mode: "improved", or "paper": in-batch targets, no clipping, one-cycle sized for 1.6 times the steps,
                duplicates left in, label smoothing 0.1 in PTHA, an error for a row without reverse text.
            fields: any other field.
        """
        paper: dict[str, object] = {
            "negatives": "targets", "mask_duplicates": False, "one_per_group": False, "missing_reverse": "error",
            "optimizer": {"clip": None, "schedule_stretch": 1.6, "warmup": 0.02},
            "label_smoothing": 0.1 if fields.get("objective") == "ptha" else 0.0,
        }  # fmt: skip
        return cls.model_validate({**(paper if mode == "paper" else {}), **fields})
