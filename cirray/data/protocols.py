"""The protocols of the public benchmarks, chosen by fields and printed with every number.

Sources: docs/PAPERS.md, by data set. Metric names: `cirray.evaluation.protocol_metrics`.
"""

from cirray.data.benchmark import Protocol
from cirray.data.caption_rules import RULES
from cirray.data.config import (
    CircoConfig,
    CirrConfig,
    Fashion200kConfig,
    FashionIQConfig,
    GeneCisConfig,
    ImageNetRConfig,
    LascoConfig,
    ShoesConfig,
)

_CIRR_METRICS = {
    "hard": ("recall", "recall_subset", "cirr_avg"),
    "soft": ("soft_recall", "soft_recall_subset"),
    "soft_subset": ("recall", "soft_recall_subset"),
}
_CIRR_LABELS = {
    "hard": "annotated target (target_hard)",
    "soft": "largest label among the soft targets in the first k, at least 0",
    "soft_subset": "annotated target; in the subset the largest soft label in the first k",
}


def cirr(config: CirrConfig, gallery: int) -> Protocol:
    """CIRR: recall over the split's images, recall among the similar images, and the mean of R@5 and Rs@1."""
    return Protocol(
        dataset="CIRR",
        split=config.split,
        gallery_rule=f"all {gallery:,} images of split.rc2.{config.split}.json",
        reference_rule=config.reference_rule,
        label_rule=_CIRR_LABELS[config.labels],
        metrics=_CIRR_METRICS[config.labels],
        ks=config.ks,
    )


def fashioniq(config: FashionIQConfig, sizes: dict[str, int]) -> Protocol:
    """Fashion IQ: recall in each category's own gallery, unweighted means over categories."""
    rule = {
        "original": f"`original`, all images of split.<category>.{config.split}.json",
        "val_split": f"`val_split` (VAL), references and targets of cap.<category>.{config.split}.json",
    }[config.gallery]
    counts = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    return Protocol(
        dataset="FashionIQ",
        split=config.split,
        gallery_rule=f"{rule} ({counts})",
        reference_rule=config.reference_rule,
        caption_rule=f"captions `{config.captions}`: {RULES[config.captions].words}",
        label_rule="the one target; means over categories are unweighted",
        metrics=("category_recall",),
        ks=config.ks,
    )


def circo(config: CircoConfig, gallery: int) -> Protocol:
    """CIRCO: mAP@k over several ground truths, per semantic aspect, and recall of the annotated target."""
    size = f"all {gallery:,} images of COCO 2017 unlabeled" if gallery else "unknown, the image list is missing"
    texts = {"relative": "text as written", "with_concept": "shared concept and relative caption (not like for like)"}
    return Protocol(
        dataset="CIRCO",
        split=config.split,
        gallery_rule=size,
        reference_rule=config.reference_rule,
        caption_rule=texts[config.text],
        label_rule="every ground truth, divisor min(k, ground truths); recall: the first one only",
        metrics=("map", "aspect_map", "target_recall"),
        ks=config.ks,
    )


def genecis(config: GeneCisConfig, sizes: dict[str, int]) -> Protocol:
    """GeneCIS: recall among a template's own candidates; the headline is the mean of the tasks' R@1."""
    counts = ", ".join(f"{task} {size}" for task, size in sizes.items())
    return Protocol(
        dataset="GeneCIS",
        split=config.task,
        gallery_rule=f"each template's target and gallery ({counts} candidates)",
        reference_rule="keep",
        label_rule="the one target",
        metrics=("task_recall",),
        ks=config.ks,
    )


def shoes(config: ShoesConfig, gallery: int) -> Protocol:
    """Shoes: recall and its mean over the cut-offs."""
    return Protocol(
        dataset="Shoes",
        split="eval",
        gallery_rule=f"all {gallery:,} eval images",
        reference_rule=config.reference_rule,
        label_rule="the one target; a pair whose reference is its target cannot be hit",
        metrics=("recall", "mean_recall"),
        ks=config.ks,
    )


def lasco(config: LascoConfig, gallery: int) -> Protocol:
    """LaSCo: recall over the val corpus (our choice, there is no official evaluation code)."""
    return Protocol(
        dataset="LaSCo",
        split="val",
        gallery_rule=f"val corpus of {gallery:,} images",
        reference_rule=config.reference_rule,
        label_rule="the one target",
        metrics=("recall",),
        ks=config.ks,
    )


def fashion200k(config: Fashion200kConfig, gallery: int) -> Protocol:
    """Fashion200k as TIRG scores it: any image that has the target's caption is a hit."""
    return Protocol(
        dataset="Fashion200k",
        split="test",
        gallery_rule=f"all {gallery:,} test images",
        reference_rule=config.reference_rule,
        caption_rule="replace X with Y",
        label_rule="any image with the target's caption (TIRG)",
        metrics=("recall",),
        ks=config.ks,
    )


def imagenet_r(config: ImageNetRConfig, gallery: int) -> Protocol:
    """Domain conversion: set recall (share of all correct images in the first k) and precision."""
    return Protocol(
        dataset="ImageNet-R",
        split=config.domain,
        gallery_rule=f"all {gallery:,} listed images, photographs as distractors",
        reference_rule=config.reference_rule,
        caption_rule=f"text {config.text!r}",
        label_rule="every image of the same class in the asked domain; queries without any are left out",
        metrics=("set_recall", "precision"),
        ks=config.ks,
    )
