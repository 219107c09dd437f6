"""Configuration of recall measured while training, and of which weights are kept by it. No torch, no ray."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cirray.core.config import Config

BENCHMARK = "benchmark"
SPLIT, SLICE = "val_", "held_"
"""Beginnings of the figures' names: on the data set's split, and on the slice of the training triplets."""


class ValidationConfig(Config):
    """Recall on held-out triplets while training: each is a query, their images the gallery.

    The papers keep the last weights, or choose them on the very split they report (`queries: benchmark`). Here a slice
    of the training triplets may be held out to choose by (`held_out`, `keep`), and the split's figures are logged
    beside it.
    """

    queries: Annotated[int, Field(ge=0)] | Literal["benchmark"] = 400
    """Held-out triplets used, in the data set's order; 0 switches validation off. benchmark: all queries of the data
    set, in its own galleries and figures (CIRR: val_R@5, val_Rs@1, val_Avg ...; Fashion IQ: val_Avg ...)."""
    split: str = "val"
    """Their split (a benchmark's is chosen in `data`)."""
    every: int | None = Field(None, ge=1)
    """Steps between two measurements (a multiple of training.log_every); null: at the end only."""
    batch: int = Field(128, ge=1)
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
    """With `keep`: stop after so many measurements in a row without a better one; null: never."""

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
