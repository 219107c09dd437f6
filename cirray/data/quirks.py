"""Sizes and oddities of the published benchmark files, for checks to compare with."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cirray.data.genecis import TASKS


@dataclass(frozen=True)
class Sizes:
    """Published numbers of one split: queries, and images by gallery name ("" for an only gallery)."""

    queries: int | None = None
    galleries: Mapping[str, int] = field(default_factory=dict)


SIZES: dict[tuple[str, str], Sizes] = {
    ("cirr", "train"): Sizes(28_225, {"": 16_939}),
    ("cirr", "val"): Sizes(4_181, {"": 2_297}),
    ("cirr", "test1"): Sizes(4_148, {"": 2_315}),
    ("fashioniq", "train"): Sizes(18_000, {"dress": 11_452, "shirt": 19_036, "toptee": 16_121}),
    ("fashioniq", "val"): Sizes(6_016, {"dress": 3_817, "shirt": 6_346, "toptee": 5_373}),
    ("fashioniq", "test"): Sizes(6_118, {"dress": 3_818, "shirt": 6_346, "toptee": 5_374}),
    ("circo", "val"): Sizes(220, {"": 123_403}),
    ("circo", "test"): Sizes(800, {"": 123_403}),
    ("genecis", "focus_attribute"): Sizes(2_000),
    ("genecis", "change_attribute"): Sizes(2_112),
    ("genecis", "focus_object"): Sizes(1_960),
    ("genecis", "change_object"): Sizes(1_960),
    ("shoes", "eval"): Sizes(1_732, {"": 4_621}),
    ("lasco", "val"): Sizes(None, {"": 39_826}),
    ("imagenet_r", "all"): Sizes(None, {"": 16_983}),
}
_FASHIONIQ = {
    "train": {"dress": (5_985, 1), "shirt": (5_988, 0), "toptee": (6_027, 12)},
    "val": {"dress": (2_017, 0), "shirt": (2_038, 1), "toptee": (1_961, 2)},
    "test": {"dress": (2_024, 0), "shirt": (2_038, 1), "toptee": (2_056, 0)},
}
"""Split -> category -> number of triplets, and of those with a blank caption."""
BLANK = {("cirr", "test1"): 1}
for _split, _rows in _FASHIONIQ.items():
    BLANK["fashioniq", _split] = sum(blank for _, blank in _rows.values())
    for _name, (_count, _blank) in _rows.items():
        _galleries = {_name: SIZES["fashioniq", _split].galleries[_name]}
        SIZES["fashioniq", f"{_split}/{_name}"] = Sizes(_count, _galleries)
        BLANK["fashioniq", f"{_split}/{_name}"] = _blank
SAME = {"shoes": 1}

SPLITS: dict[str, tuple[str, tuple[str, ...]]] = {
    "cirr": ("split", ("train", "val", "test1")),
    "fashioniq": ("split", ("train", "val", "test")),
    "circo": ("split", ("val", "test")),
    "genecis": ("task", tuple(TASKS)),
}
"""Format -> config field that names a split, and its values."""
ONLY_SPLIT = {"shoes": "eval", "lasco": "val", "fashion200k": "test", "imagenet_r": "all"}
"""Name of the only split of other benchmarks."""
