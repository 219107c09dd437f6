"""Configuration of pair mining. No torch."""

from typing import Literal

from pydantic import Field, model_validator

from cirray.core.config import Config
from cirray.core.fields import Common, Effort


class MiningConfig(Config):
    """How image pairs are chosen. Ranks count from 0, self and near-duplicates left out."""

    policy: Common[str] = "neighbour_band"
    """`neighbour_band`, `rank_window` (SPN: targets drawn from a far window of each reference), `uniform`, `subgroup`
    (VDG), `existing` (pairs of the labelled triplets) or `reverse` (the same, swapped)."""
    rank_low: int = Field(0, ge=0)
    """First rank of the window in a reference's list of neighbours."""
    rank_high: int = Field(2, ge=1)
    """End of the window, exclusive."""
    quantiles: tuple[float, float] | None = None
    """Window as shares of the list instead of ranks, e.g. [0.6, 0.9] for dissimilar pairs."""
    draws: int = Field(0, ge=0)
    """Targets drawn at random from a reference's window; 0 takes all of it."""
    mutual: bool = False
    """Keep a pair only when each image is in the other's window."""
    max_score: float = Field(1.0, le=1.0)
    """Pairs with a higher cosine are near-duplicates, left out of the list before ranks are counted."""
    min_score: float = Field(-1.0, ge=-1.0)
    """Pairs with a lower cosine are unrelated and dropped."""
    exclude_known: bool = False
    """Leave out pairs that labelled triplets hold already, in either order."""
    triplet_images: bool = False
    """Pair only images of the labelled triplets."""
    references_only: bool = False
    """`rank_window`: only references of the labelled triplets are references of pairs."""
    merge_identical: bool = False
    """Of images with features equal to the byte keep the first id alone: one picture under two names."""
    representation: Literal["flat", "mean"] = "flat"
    """One vector per image: all its tokens in a row (place-sensitive), or their mean (small)."""
    top_k: int = Field(20, ge=1)
    """subgroup: length of an anchor's list of neighbours; `max_score` is applied to the list (VDG: 0.94)."""
    min_gap: float = Field(0.002, ge=0)
    """subgroup: an image is skipped whose cosine with the anchor is less than this below the last one's."""
    size: int = Field(6, ge=2)
    """subgroup: images of a group, the anchor among them."""
    links: Literal["ring", "ring+chords"] = "ring+chords"
    """subgroup: which images of a group are paired."""
    max_shared: int = Field(2, ge=0)
    """subgroup: a group that has more images in common with an accepted one is dropped."""
    groups: int = Field(0, ge=0)
    """subgroup: so many groups at most, of anchors in random order; 0: all."""
    calibration: tuple[float, float] | None = None
    """subgroup: quantiles of the listed cosines and of the steps between them that replace `max_score` and `min_gap`,
    which belong to the paper's encoder (ResNet-152)."""
    count: int = Field(0, ge=0)
    """At most so many unordered pairs, best ranks and scores first; 0: all. For `uniform`: how many (0: one each);
    for `rank_window`: so many references, drawn at random."""
    group_limit: int = Field(8, ge=2)
    """Images of one group at most; groups join most similar pairs first, one per training batch."""
    memory_mib: Effort[int] = Field(256, ge=8)
    """Working memory of the search; the answer does not depend on it."""
    seed: int = Field(0, ge=0)
    """Seed of draws and of a pair's orientation."""

    @model_validator(mode="after")
    def _windows(self) -> "MiningConfig":
        if self.rank_high <= self.rank_low:
            raise ValueError(f"rank_high {self.rank_high} must be above rank_low {self.rank_low}")
        if self.quantiles and not 0.0 <= self.quantiles[0] < self.quantiles[1] <= 1.0:
            raise ValueError(f"quantiles {self.quantiles} must be two rising shares in [0, 1]")
        if self.max_score <= self.min_score:
            raise ValueError(f"max_score {self.max_score} must be above min_score {self.min_score}")
        if self.calibration and not all(0.0 <= share <= 1.0 for share in self.calibration):
            raise ValueError(f"calibration {self.calibration} must be two shares in [0, 1]")
        return self
