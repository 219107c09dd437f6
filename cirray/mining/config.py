"""Configuration of pair mining, and the policies' settings. No torch."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from cirray.core.components import Component
from cirray.core.config import Config
from cirray.core.fields import Common, Effort
from cirray.core.registry import Registry

if TYPE_CHECKING:
    from cirray.mining.pairs import Policy


class PolicyConfig(Config):
    """Base of all policies' settings, and the settings of a policy without its own."""

    labelled: ClassVar[bool] = False
    """Whether the policy reads the labelled triplets alone, and no features."""
    grouped: ClassVar[bool] = False
    """Whether its pairs have groups; others get them by `group_limit`."""

    def most_pairs(self, images: int, labelled: int) -> int | None:
        """Most pairs that it makes of so many images and labelled triplets; None: only mining tells."""
        return None


class LabelledConfig(PolicyConfig):
    """A policy over the labelled triplets."""

    labelled = True
    grouped = True


class NeighbourConfig(PolicyConfig):
    """A policy over lists of neighbours. Ranks count from 0, self and near-duplicates left out."""

    max_score: float = Field(1.0, le=1.0)
    """Pairs with a higher cosine are near-duplicates, left out of the list before ranks are counted."""
    min_score: float = Field(-1.0, ge=-1.0)
    """Pairs with a lower cosine are unrelated and dropped."""
    representation: Literal["flat", "mean"] = "flat"
    """One vector per image: all its tokens in a row (place-sensitive), or their mean (small)."""

    @model_validator(mode="after")
    def _rising_scores(self) -> "NeighbourConfig":
        if self.max_score <= self.min_score:
            raise ValueError(f"max_score {self.max_score} must be above min_score {self.min_score}")
        return self


class WindowConfig(NeighbourConfig):
    """A window in every image's list of neighbours."""

    rank_low: int = Field(0, ge=0)
    """First rank of the window in a reference's list of neighbours."""
    rank_high: int = Field(2, ge=1)
    """End of the window, exclusive."""
    quantiles: tuple[float, float] | None = None
    """Window as shares of the list instead of ranks, e.g. [0.6, 0.9] for dissimilar pairs."""
    draws: int = Field(0, ge=0)
    """Targets drawn at random from a reference's window; 0 takes all of it."""

    def most_pairs(self, images: int, labelled: int) -> int | None:
        """A window's draws, or all of it, for every image."""
        if not self.draws and self.quantiles:
            return None
        return images * (self.draws or self.rank_high - self.rank_low)

    @model_validator(mode="after")
    def _rising_ranks(self) -> "WindowConfig":
        if self.rank_high <= self.rank_low:
            raise ValueError(f"rank_high {self.rank_high} must be above rank_low {self.rank_low}")
        if self.quantiles and not 0.0 <= self.quantiles[0] < self.quantiles[1] <= 1.0:
            raise ValueError(f"quantiles {self.quantiles} must be two rising shares in [0, 1]")
        return self


class BandConfig(WindowConfig):
    """Neighbours within a band of ranks and cosines."""

    mutual: bool = False
    """Keep a pair only when each image is in the other's window."""


class RankWindowConfig(WindowConfig):
    """Targets from a far window of each reference (SPN)."""

    references_only: bool = False
    """Only references of the labelled triplets are references of pairs."""

    def most_pairs(self, images: int, labelled: int) -> int | None:
        """As any window's; every labelled triplet has one reference."""
        return super().most_pairs(min(images, labelled) if self.references_only else images, labelled)


class SubgroupConfig(NeighbourConfig):
    """Small sets of images that are alike but not the same (VDG; its `max_score` is 0.94)."""

    grouped = True

    top_k: int = Field(20, ge=1)
    """Length of an anchor's list of neighbours; `max_score` is applied to the list."""
    min_gap: float = Field(0.002, ge=0)
    """An image is skipped whose cosine with the anchor is less than this below the last one's."""
    size: int = Field(6, ge=2)
    """Images of a group, the anchor among them."""
    links: Literal["ring", "ring+chords"] = "ring+chords"
    """Which images of a group are paired."""
    max_shared: int = Field(2, ge=0)
    """A group that has more images in common with an accepted one is dropped."""
    groups: int = Field(0, ge=0)
    """Groups at most, of anchors in random order; 0: all."""
    calibration: tuple[float, float] | None = None
    """Quantiles of the listed cosines and of the steps between them that replace `max_score` and `min_gap`, which
    belong to the paper's encoder (ResNet-152)."""

    @model_validator(mode="after")
    def _shares(self) -> "SubgroupConfig":
        if self.calibration and not all(0.0 <= share <= 1.0 for share in self.calibration):
            raise ValueError(f"calibration {self.calibration} must be two shares in [0, 1]")
        return self


POLICIES: "Registry[Policy]" = Registry(
    "mining policy", ["cirray.mining.pairs"],
    {
        "neighbour_band": BandConfig, "rank_window": RankWindowConfig, "uniform": PolicyConfig,
        "subgroup": SubgroupConfig, "existing": LabelledConfig, "reverse": LabelledConfig,
    },
    PolicyConfig,
)  # fmt: skip
"""Policy name -> function that chooses pairs."""


class MiningPolicy(Component):
    """The mining policy."""

    registry = POLICIES
    kind: str = "neighbour_band"
    """Name of the policy."""


class MiningConfig(Config):
    """How image pairs are chosen."""

    policy: Common[MiningPolicy] = MiningPolicy()
    """What chooses the pairs: neighbours in a band of ranks, `rank_window` (SPN: targets drawn from a far window of
    each reference), `uniform`, `subgroup` (VDG), `existing` (pairs of the labelled triplets) or `reverse` (the same,
    swapped)."""
    exclude_known: bool = False
    """Leave out pairs that labelled triplets hold already, in either order."""
    triplet_images: bool = False
    """Pair only images of the labelled triplets."""
    merge_identical: bool = False
    """Of images with equal features keep only the first id: one picture under two names."""
    count: int = Field(0, ge=0)
    """Most unordered pairs, best ranks and scores first; 0: all. For `uniform`: their number (0: one each); for
    `rank_window`: number of references, drawn at random."""
    group_limit: int = Field(8, ge=2)
    """Images of one group at most; groups join most similar pairs first, one per training batch."""
    recall: float = Field(1.0, gt=0.0, le=1.0)
    """Least share of the windows' pairs that is found, measured on drawn references. Below 1, inverted lists replace
    the exact search of windows of the first ranks among more than 100,000 images; they hold all vectors in memory."""
    memory_mib: Effort[int] = Field(256, ge=8)
    """Working memory of the search; the answer does not depend on it."""
    seed: int = Field(0, ge=0)
    """Seed of draws and of a pair's orientation."""

    @property
    def labelled(self) -> bool:
        """Whether the policy reads the labelled triplets alone, and no features."""
        return isinstance(self.policy.settings, PolicyConfig) and self.policy.settings.labelled
