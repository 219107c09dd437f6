"""Configuration of the data layer. No torch."""

from typing import Literal

from pydantic import Field

from cirray.core.config import Config


class ShapesConfig(Config):
    """Sizes of the embedded world. Smaller counts give a prefix of the larger ones' families, from the same seed."""

    seed: int = Field(0, ge=0)
    """Everything that is drawn or written follows from this number."""
    labelled_families: int = Field(500, ge=0)
    """Families (one reference and its edits) with texts, for training."""
    edits_per_family: int = Field(4, ge=1, le=12)
    """Edits of a labelled or held-out reference: triplets per family."""
    heldout_families: int = Field(100, ge=0)
    """Families like the labelled ones, split `val`: they judge the text generator."""
    pool_families: int = Field(2500, ge=0)
    """Families without texts, to mine pairs from."""
    edits_per_pool_family: int = Field(3, ge=1, le=12)
    """Single edits of a pool family's base image."""
    gallery_references: int = Field(250, ge=0)
    """References of the hard gallery."""
    edits_per_reference: int = Field(8, ge=1, le=24)
    """Different edits of one gallery reference, one query each."""
    image_size: int = Field(48, ge=24, le=384)
    """Side of the square images in pixels; a multiple of 3 keeps the cells equal."""
    reverse_texts: bool = False
    """Also write the true reverse text of every labelled triplet (an oracle's privilege)."""


class FolderConfig(Config):
    """A user's own images in the open folder layout; every part may be absent."""

    root: str = "~/cirray/quickstart/world"
    """Folder that holds the rest. A folder that holds only images is a gallery."""
    labelled: str = "labelled"
    """Images of the triplets: a folder under `root`, or an absolute path."""
    pool: str = "pool"
    """Unlabelled images to mine pairs from."""
    gallery: str = "gallery"
    """Images to search in; without it, a data set with queries searches all images."""
    triplets: str = "triplets"
    """CSV or JSONL of reference, target, modification [, split, group, edit, weight, reverse_modification]."""
    queries: str = "queries"
    """CSV or JSONL of reference, target, modification [, query_id, edit]."""
    captions: str = "captions"
    """CSV or JSONL of image, caption. A name without suffix stands for `.jsonl` or `.csv`."""
    reference_rule: Literal["remove", "keep"] = "remove"
    """Whether a query's own reference is taken out of its ranking."""
    ks: tuple[int, ...] = (1, 5, 10, 50)
    """Ranks at which recall is reported."""


class DataConfig(Config):
    """Which reader, and what it reads."""

    format: str = "folder"
    """Name of a reader, see `cirray.data.readers`."""
    folder: FolderConfig = FolderConfig()


class ImageLimits(Config):
    """What an image must keep to before its pixels are decoded."""

    max_pixels: int = Field(40_000_000, ge=1)
    """Width times height."""
    max_aspect: float = Field(20.0, ge=1.0)
    """Longer side over shorter side."""
    min_side: int = Field(8, ge=1)
    """Shorter side in pixels."""
    max_bytes: int = Field(64 * 2**20, ge=1)
    """Size of the file or upload."""
    draft_side: int = Field(1024, ge=1)
    """Large JPEGs are decoded at a half, quarter or eighth as long as both sides stay at least this long."""


class TransformConfig(Config):
    """From an image of any size to the square pixels an encoder reads."""

    size: int = Field(48, ge=8, le=2048)
    """Side of the result in pixels."""
    mode: Literal["target_pad", "squash", "center_crop"] = "squash"
    """Pad to at most `ratio`, then crop the centre; ignore the aspect ratio; or crop the centre."""
    ratio: float = Field(1.25, ge=1.0)
    """Aspect ratio up to which `target_pad` does not pad."""
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Per-channel mean of pixels in [0, 1] (CLIP's), subtracted on the device."""
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    """Per-channel deviation, divided by on the device."""


class NlvrRun(Config):
    """Convert the published NLVR scenes to the folder layout."""

    root: str
    """Folder that holds `dev/dev.json` and `dev/images/`, or a folder `nlvr` with them."""
    out: str
    """Folder to write."""
    seed: int = Field(0, ge=0)
    """Of the split and of the texts."""
