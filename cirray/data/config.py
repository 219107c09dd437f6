"""Configuration of the data layer. No torch."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from cirray.core.config import Config
from cirray.core.errors import ConfigError
from cirray.core.fields import Common, Known, Place, StageDigested
from cirray.data.presets import PRESETS, check_preset

FORMATS = (
    "folder", "cirr", "fashioniq", "circo", "genecis", "shoes", "lasco", "fashion200k", "imagenet_r", "megapairs",
    "huggingface", "webdataset",
)  # fmt: skip
"""Readers of this package (`cirray.data`); the section of the same name is theirs."""


class ShapesConfig(Config):
    """Sizes of the embedded world. Smaller counts give a prefix of the larger ones' families, from the same seed."""

    seed: Common[int] = Field(0, ge=0)
    """Everything that is drawn or written follows from this number."""
    labelled_families: Common[int] = Field(500, ge=0)
    """Families (one reference and its edits) with texts, for training."""
    edits_per_family: int = Field(4, ge=1, le=12)
    """Edits of a labelled or held-out reference: triplets per family."""
    heldout_families: int = Field(100, ge=0)
    """Families like the labelled ones, split `val`: they judge the text generator."""
    pool_families: Common[int] = Field(2500, ge=0)
    """Families without texts, to mine pairs from."""
    edits_per_pool_family: int = Field(3, ge=1, le=12)
    """Single edits of a pool family's base image."""
    gallery_references: int = Field(250, ge=0)
    """References of the hard gallery."""
    edits_per_reference: int = Field(8, ge=1, le=24)
    """Different edits of one gallery reference, one query each."""
    image_size: Common[int] = Field(48, ge=24, le=384)
    """Side of the square images in pixels; a multiple of 3 keeps the cells equal."""
    reverse_texts: bool = False
    """Also write the true reverse text of every labelled triplet (an oracle's privilege)."""
    pool_captions: bool = False
    """Also write a caption of every pool image: image-caption pairs for zero-shot methods, no modification text."""
    colours: int = Field(8, ge=2, le=8)
    """How many colours objects have: the first ones of `cirray.data.shapes.scenes.COLOURS`."""
    shapes: int = Field(6, ge=2, le=6)
    """How many shapes objects have: the first ones of `SHAPES`."""
    clutter: int = Field(0, ge=0, le=64)
    """Coloured specks drawn behind the objects of every image; they mean nothing and differ from image to image."""
    vague: float = Field(0.0, ge=0, le=1)
    """Share of texts that name an object by its shape alone, though others of the scene may have that shape."""


class FolderConfig(Config):
    """A user's own images in the open folder layout; every part may be absent."""

    root: Place = "@world"
    """Folder that holds the rest. A folder that holds only images is a gallery.

    Pictures are found by content, whatever their suffix. An id is the path below its folder without suffix, with it
    where two would share one (`a.jpg`, `a.png`); tables may name a picture either way.
    """
    labelled: Place = "labelled"
    """Images of the triplets: a folder under `root`, or an absolute path."""
    pool: Place = "pool"
    """Unlabelled images to mine pairs from."""
    gallery: Place = "gallery"
    """Images to search in; without it, a data set with queries searches all images."""
    triplets: Place = "triplets"
    """Table (CSV, TSV, JSON, JSONL, Parquet) of reference, target, modification [, split, group, edit, weight,
    reverse_modification]."""
    queries: Place = "queries"
    """Table of reference, target, modification [, query_id, edit]."""
    captions: Place = "captions"
    """Table of image, caption. A name without suffix stands for any kind of table."""
    reference_rule: Literal["remove", "keep"] = "remove"
    """Whether a query's own reference is taken out of its ranking."""
    ks: tuple[int, ...] = (1, 5, 10, 50)
    """Ranks at which recall is reported."""


class CirrConfig(Config):
    """CIRR (release rc2): `captions/`, `image_splits/` below `root/cirr` or `root`."""

    root: Place = "~/data/cirr"
    """Folder that holds `cirr/captions/...` (or `captions/...`)."""
    images: Place = ""
    """Folder of `train/`, `dev/` and `test1/`, below `root` or absolute; empty: `root`."""
    split: Literal["train", "val", "test1"] = "val"
    """Split whose queries and gallery are read; `test1` has no targets. Training triplets are always read."""
    labels: Literal["hard", "soft", "soft_subset"] = "hard"
    """`hard`: the annotated target; `soft`: graded targets; `soft_subset`: graded in the subset only (CoVR)."""
    reference_rule: Literal["remove", "keep"] = "remove"
    """Whether a query's own reference leaves its ranking."""
    extended: bool = False
    """Also train on the extended captions, one more triplet for each text that is not a placeholder."""
    ks: tuple[int, ...] = (1, 5, 10, 50)
    """Cut-offs of recall; the subset's are 1, 2, 3."""


class FashionIQConfig(Config):
    """Fashion IQ: `captions/`, `image_splits/`, `images/<id>.jpg` or `.png`."""

    root: Place = "~/data/fashioniq"
    """Folder that holds `captions/` and `image_splits/`."""
    images: Place = "images"
    """Folder of the images, below `root` or absolute."""
    category: Literal["dress", "shirt", "toptee", "all"] = "all"
    """One category, or all three, each with its own gallery."""
    split: Literal["train", "val", "test"] = "val"
    """Split whose queries and galleries are read; the published `test` has no targets."""
    gallery: Literal["original", "val_split"] = "original"
    """All images of the split, or the union of references and targets (VAL): smaller, hence higher numbers."""
    reference_rule: Literal["remove", "keep"] = "keep"
    """Whether a query's own reference leaves its ranking."""
    captions: Literal["clip4cir", "plain_and", "reverse_and", "both_averaged", "both_separate", "each_alone"] = (
        "clip4cir"
    )
    """How the two captions of a triplet become a query, see `cirray.data.caption_rules`."""
    train_captions: Literal["joined", "four_ways"] = "joined"
    """`joined`: one text for a triplet; `four_ways`: c1 and c2, c2 and c1, c1, c2 as rows of weight 1/4 (CLIP4CIR)."""
    ks: tuple[int, ...] = (10, 50)
    """Cut-offs of recall."""


class CircoConfig(Config):
    """CIRCO: `annotations/{val,test}.json`, images and image list of COCO 2017 unlabeled."""

    root: Place = "~/data/circo"
    """Folder that holds `annotations/` and `COCO2017_unlabeled/`."""
    images: Place = "COCO2017_unlabeled/unlabeled2017"
    """Folder of the images, below `root` or absolute."""
    info: Place = "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json"
    """The list of all gallery images; without it the gallery is empty, and only submissions can be scored."""
    split: Literal["val", "test"] = "val"
    """Split whose queries are read; `test` has no ground truths."""
    reference_rule: Literal["remove", "keep"] = "keep"
    """Whether a query's own reference leaves its ranking; it is never a ground truth."""
    text: Literal["relative", "with_concept"] = "relative"
    """The relative caption alone, or `<shared concept> that <relative caption>` (not like for like)."""
    ks: tuple[int, ...] = (5, 10, 25, 50)
    """Cut-offs of mAP and recall."""


class GeneCisConfig(Config):
    """GeneCIS: `genecis/<task>.json`; each template searches its own ten or fifteen images."""

    root: Place = "~/data/genecis"
    """Folder that holds `genecis/<task>.json` (or the files themselves)."""
    coco: Place = "val2017"
    """COCO val2017, for the object tasks, below `root` or absolute."""
    visual_genome: Place = "VG_100K_all"
    """Visual Genome 1.2, for the attribute tasks, below `root` or absolute."""
    task: Literal["focus_attribute", "change_attribute", "focus_object", "change_object", "all"] = "all"
    """One task or all four."""
    ks: tuple[int, ...] = (1, 2, 3)
    """Cut-offs of recall."""


class ShoesConfig(Config):
    """Shoes: relative captions and name lists as in the VAL repository."""

    root: Place = "~/data/shoes"
    """Folder that holds `relative_captions_shoes.json`, `train_im_names.txt` and `eval_im_names.txt`."""
    images: Place = "attributedata"
    """Folder of the images in their type folders, below `root` or absolute."""
    reference_rule: Literal["remove", "keep"] = "remove"
    """Whether a query's own reference leaves its ranking."""
    ks: tuple[int, ...] = (1, 10, 50)
    """Cut-offs of recall, and of their mean."""


class LascoConfig(Config):
    """LaSCo: `downloads/lasco_{train,val}.json` with their corpora, images of COCO 2014."""

    root: Place = "~/data/lasco"
    """Folder that holds `downloads/` (or the files themselves)."""
    images: Place = ""
    """Folder of `train2014/` and `val2014/`, below `root` or absolute; empty: `root`."""
    reference_rule: Literal["remove", "keep"] = "remove"
    """Whether a query's own reference leaves its ranking."""
    ks: tuple[int, ...] = (1, 5, 10, 50, 500)
    """Cut-offs of recall."""


class Fashion200kConfig(Config):
    """Fashion200k as TIRG uses it: `labels/*.txt`, `test_queries.txt`, images where the label files say."""

    root: Place = "~/data/fashion200k"
    """Folder that holds `labels/`, `test_queries.txt` and `women/`."""
    reference_rule: Literal["remove", "keep"] = "remove"
    """Whether a query's own reference leaves its ranking (TIRG sets its score to a very low value)."""
    triplets_per_image: int = Field(1, ge=0)
    """Training triplets drawn for each image that has a one-word neighbour."""
    seed: int = Field(0, ge=0)
    """Seed of that draw."""
    ks: tuple[int, ...] = (1, 5, 10, 50, 100)
    """Cut-offs of recall."""


class ImageNetRConfig(Config):
    """Domain conversion from ImageNet to ImageNet-R (Pic2Word): lists of queries and targets with labels."""

    root: Place = "~/data/imgnet"
    """Folder that holds `imgnet_real_query.txt` and `imgnet_targets.txt`, or a folder `imgnet` with them."""
    images: Place = ""
    """Folder that the paths of the lists start from; empty: the folder around the `imgnet` of the lists."""
    domain: Literal["cartoon", "origami", "toy", "sculpture", "all"] = "all"
    """One domain or all four; each photograph is a query once for each."""
    text: str = "{domain}"
    """Modification text; `{domain}` stands for the domain's name."""
    reference_rule: Literal["remove", "keep"] = "keep"
    """Whether a query's own photograph leaves its ranking; it is never a target."""
    ks: tuple[int, ...] = (10, 50)
    """Cut-offs of set recall and precision."""


class MegaPairsConfig(Config):
    """Triplets as MegaPairs publishes them: an object a line with `q_img`, `q_texts`, `t_img`, `hns`."""

    root: Place = "~/data/megapairs"
    """Folder of the files."""
    files: str = "*.jsonl"
    """Which files are read (`.jsonl`, also packed, or `.parquet`); those called `val...` or `test...` do not train."""
    images: Place = ""
    """Folder that the pictures' paths start from, below `root` or absolute; empty: `root`."""


class HuggingFaceConfig(Config):
    """A Hugging Face data set: a folder of `save_to_disk` (read without that library), a hub id (read with it), or
    either of what `cirray export triplets` wrote, whose splits and columns are known.
    """

    root: Place = "~/data/hf"
    """Folder, or hub id such as `owner/name`."""
    name: str = ""
    """Configuration of a hub data set."""
    triplets: str = "train"
    """Split whose rows are training triplets; empty: none."""
    queries: str = ""
    """Split whose rows are queries; empty: none."""
    gallery: str = ""
    """Split whose rows are gallery images; empty: the queries' own images."""
    reference: str = "reference"
    """Column of the reference: an image, or the id of one."""
    target: str = "target"
    """Column of the target: an image, or the id of one."""
    modification: str = "modification"
    """Column of the text."""
    image: str = "image"
    """Column of gallery images."""
    id: str = "id"
    """Column of their ids; without it, the file name that the image carries, else its row."""
    reference_rule: Literal["remove", "keep"] = "remove"
    """Whether a query's own reference leaves its ranking."""
    ks: tuple[int, ...] = (1, 5, 10, 50)
    """Cut-offs of recall."""


class WebDatasetConfig(Config):
    """WebDataset tar shards; images are read at their place inside the shards, never unpacked."""

    root: Place = "~/data/shards"
    """Folder of the shards (path or URI)."""
    shards: str = "*.tar"
    """Which files are shards. They must not be compressed."""
    part: Literal["pool", "gallery"] = "pool"
    """What single images are: unlabelled ones to mine from, or a gallery."""
    triplets: Literal["train", "val", "query"] = "train"
    """What samples with reference, target and text are: triplets of a split, or queries."""
    reference_rule: Literal["remove", "keep"] = "remove"
    """Whether a query's own reference leaves its ranking."""
    ks: tuple[int, ...] = (1, 5, 10, 50)
    """Cut-offs of recall."""


class DataConfig(StageDigested, Config):
    """The data set: its format and where its files are."""

    format: Annotated[Common[str], Known(*FORMATS)] = "folder"
    """Which benchmark, or which layout of files."""
    preset: Annotated[Common[str], Known(*PRESETS)] = ""
    """Protocol of a family of methods. Fields that are given win over it."""
    folder: FolderConfig = FolderConfig()
    cirr: CirrConfig = CirrConfig()
    fashioniq: FashionIQConfig = FashionIQConfig()
    circo: CircoConfig = CircoConfig()
    genecis: GeneCisConfig = GeneCisConfig()
    shoes: ShoesConfig = ShoesConfig()
    lasco: LascoConfig = LascoConfig()
    fashion200k: Fashion200kConfig = Fashion200kConfig()
    imagenet_r: ImageNetRConfig = ImageNetRConfig()
    megapairs: MegaPairsConfig = MegaPairsConfig()
    huggingface: HuggingFaceConfig = HuggingFaceConfig()
    webdataset: WebDatasetConfig = WebDatasetConfig()

    def unread(self) -> frozenset[str]:
        """The sections of all formats but this one."""
        return frozenset(FORMATS) - {self.format}

    @classmethod
    def from_preset(cls, values: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """What `preset` says of the format."""
        name, form = str(values.get("preset", "")), str(values.get("format", cls.model_fields["format"].default))
        return name, {form: PRESETS.get(name, {}).get(form, {})}

    @field_validator("preset")
    @classmethod
    def _speaks_of_the_format(cls, preset: str, info: ValidationInfo) -> str:
        if preset:
            check_preset(preset, info.data.get("format", ""))
        return preset


class ImageLimits(Config):
    """Limits on an image, checked before its pixels are decoded."""

    max_pixels: int = Field(40_000_000, ge=1)
    """Largest width times height."""
    max_aspect: float = Field(20.0, ge=1.0)
    """Largest ratio of the longer to the shorter side."""
    min_side: int = Field(8, ge=1)
    """Smallest shorter side in pixels."""
    max_bytes: int = Field(64 * 2**20, ge=1)
    """Largest file or upload in bytes."""
    draft_side: int = Field(1024, ge=1)
    """Large JPEGs are decoded at a half, quarter or eighth as long as both sides stay at least this long."""


ImageMode = Literal["target_pad", "squash", "center_crop"]


class TransformConfig(Config):
    """From an image of any size to the square pixels an encoder reads."""

    size: int = Field(48, ge=8, le=2048)
    """Side of the result in pixels."""
    mode: ImageMode = "squash"
    """Pad to at most `ratio`, then crop the centre; ignore the aspect ratio; or crop the centre."""
    ratio: float = Field(1.25, ge=1.0)
    """Aspect ratio up to which `target_pad` does not pad."""
    resize: int = Field(0, ge=0, le=4096)
    """Pixels that the shorter side (`squash`: both sides) is resized to before the central square of `size` is cut
    out; 0: `size`."""
    resample: Literal["bicubic", "bilinear", "lanczos", "nearest", "box", "hamming"] = "bicubic"
    """Filter of the resizing."""
    odd_margin: Literal["even", "down"] = "even"
    """Where the cut begins in a margin of odd width: at the nearest even half (torchvision, timm, open_clip), or
    rounded down (transformers)."""
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Per-channel mean of pixels in [0, 1] (CLIP's), subtracted on the device."""
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    """Per-channel deviation, divided by on the device."""

    @property
    def is_square(self) -> bool:
        """Whether every picture becomes a square."""
        return True

    def with_mode(self, mode: ImageMode | Literal[""]) -> "TransformConfig":
        """The same with another way to a square, if any; `target_pad` cuts its centre as its authors' torchvision does.

        Raises ConfigError for an encoder that reads pictures in their own shape.
        """
        if not mode:
            return self
        if not self.is_square:
            raise ConfigError(f"image_mode={mode} makes squares, and this encoder reads pictures in their own shape.")
        return self.model_copy(update={"mode": mode} | ({"odd_margin": "even"} if mode == "target_pad" else {}))

    @model_validator(mode="after")
    def _fits(self) -> "TransformConfig":
        if self.resize and self.resize < self.size:
            raise ValueError(f"resize {self.resize} must not be below size {self.size}, which is cut out of it")
        return self


class OwnShapeConfig(TransformConfig):
    """From an image of any size to pixels in its own shape, packed (`cirray.transforms`). No run says it: an encoder
    brings it.
    """

    mode: Literal["whole", "patches"]  # type: ignore[assignment]
    """The picture as it is, smaller where it has more than `size` x `size` pixels; or as many whole patches as fit."""
    patch: int = Field(0, ge=0)
    """Side of a patch in pixels, of `patches`."""
    most_patches: int = Field(0, ge=0)
    """Largest number of patches, of `patches`."""

    @property
    def is_square(self) -> bool:
        """It is not."""
        return False


def transform_config(tree: Mapping[str, Any]) -> TransformConfig:
    """The transform that plain values describe. Raises ValidationError when they describe none."""
    return (OwnShapeConfig if tree.get("mode") in ("whole", "patches") else TransformConfig).model_validate(dict(tree))
