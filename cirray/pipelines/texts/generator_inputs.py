"""Inputs and start weights of the generator's training, the same here and on every worker. No ray."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch

from cirray.core.artifacts import localize, read_manifest
from cirray.core.errors import ConfigError, DataError
from cirray.core.seeding import derive_seed
from cirray.data.benchmark import CirDataset, Labelled
from cirray.data.images import open_place
from cirray.data.readers import read_dataset
from cirray.data.shapes.corpus import Bags, caption_bags, difference_bags
from cirray.features.store import FeatureInfo, FeatureLookup, FeatureStore, check_tower
from cirray.generators.config import TRAINABLE, GeneratorConfig
from cirray.generators.mtg import ModificationTextModel
from cirray.generators.trainable import Given, TrainableGenerator
from cirray.models.towers.hf_blip2 import VisionTower, load_vision_tower
from cirray.models.towers.language import language_dtype, load_language_model
from cirray.pipelines.data.datasets import captioned_digest
from cirray.pipelines.features.towers import LANGUAGE, VISION
from cirray.pipelines.texts.config import GeneratorRun
from cirray.training.generation import AlignmentTask
from cirray.transforms import build_transform, stacked
from cirray.types import Triplet, stable_id

_ENCODING_BATCH = 256


def build_generator(run: GeneratorRun, device: str | None = None) -> TrainableGenerator:
    """A network around a language model, with random start weights or those of a BLIP-2 or InstructBLIP checkpoint.

    Raises ArtifactError when the checkpoint, or its projection, does not fit the towers or the language model.
    """
    device = device or run.device
    source_of = run.language or localize(run.towers, "towers") / LANGUAGE
    dtype = language_dtype(run.language_dtype)
    language = load_language_model(source_of, dtype, run.language_quantization, device)
    width = load_vision_tower(localize(run.towers, "towers") / VISION).width
    torch.manual_seed(derive_seed(run.seed, "generator"))
    given = Given(language, width, run.qformer_source, run.source_projection)
    model: TrainableGenerator = TRAINABLE.get(run.generator.kind).build(run.generator.settings, given)
    return model.to(device)


def encode_live(tower: VisionTower, dataset: CirDataset, ids: Sequence[str], run: GeneratorRun) -> FeatureStore:
    """Features of a few images in memory (fp16), without a features artifact."""
    transform, blocks = build_transform(tower.transform), []
    with torch.inference_mode():
        for begin in range(0, len(ids), _ENCODING_BATCH):
            names = ids[begin : begin + _ENCODING_BATCH]
            images = [transform(open_place(dataset.images.place(name), run.limits)) for name in names]
            blocks.append(tower(torch.from_numpy(stacked(images))).half().numpy())
    info = FeatureInfo(tower.digest, transform.digest, (tower.num_tokens, tower.width))
    return FeatureStore(blocks, ids, info)


def read_features(run: GeneratorRun, dataset: CirDataset, labelled: Labelled) -> FeatureStore:
    """Features of the labelled images: from artifacts, or encoded now.

    Raises IndexMismatchError when the artifacts were made by another vision tower than the towers'.
    """
    return features_of(run, dataset, [] if run.features else _images_of(labelled))


def features_of(run: GeneratorRun, dataset: CirDataset | None, images: Sequence[str]) -> FeatureStore:
    """The run's features; where it names none, those of some images of its data set, encoded now.

    Raises IndexMismatchError as `read_features`.
    """
    if run.features:
        store, wanted = FeatureStore.open_many(list(run.features)), read_manifest(run.towers).extra["encoder_digest"]
        check_tower(run.features, store.info.encoder_digest, run.towers, wanted)
        return store
    assert dataset is not None
    return encode_live(load_vision_tower(localize(run.towers, "towers") / VISION), dataset, images, run)


def _images_of(labelled: Labelled) -> list[str]:
    """Every image that has a triplet or a caption, sorted."""
    rows = (*labelled.train, *labelled.held_out)
    return sorted({image for row in rows for image in (row.reference_id, row.target_id)} | set(labelled.captions))


def data_digests(run: GeneratorRun, dataset: CirDataset, labelled: Labelled) -> dict[str, str]:
    """Name -> digest of what the run reads of its data sets: triplets, captions and, without features, images."""
    rows = (*labelled.train, "held out", *labelled.held_out)
    images = [] if run.features else _images_of(labelled)
    inputs = {
        "data": stable_id(*rows, captioned_digest(dataset, images, run.limits), *sorted(labelled.captions.items()))
    }
    other = run.alignment_training.data
    if other is not None:
        inputs["alignment_training.data"] = stable_id(*sorted(read_dataset(other).captions.items()))
    return inputs


def alignment_task(
    run: GeneratorRun, model: TrainableGenerator, features: FeatureLookup, labelled: Labelled
) -> tuple[AlignmentTask | None, dict[str, Any]]:
    """The alignment task, or None; and its objective and counts for the manifest.

    Raises DataError when the run names an objective that its captions do not allow, and ConfigError when neither
    alignment nor the labelled triplets would train the reader.
    """
    if run.alignment == "none" or not isinstance(model, ModificationTextModel):
        _check_aligned(run)
        return None, {"objective": "none"}
    known, features = _alignment_data(run, features, labelled)
    captions = {name: text for name, text in known.items() if name in features}
    bags = {name: found for name, text in captions.items() if (found := caption_bags(text)) is not None}
    objective = _objective(run, model, bags, captions)
    if objective == "none":
        _check_aligned(run)
        return None, {"objective": "none"}
    by_cell = objective == "bags"
    pairs = caption_pairs(labelled.train, bags) if by_cell and "difference" in model.config.passes else None
    task = AlignmentTask(
        model, features, run.alignment_training, bags if by_cell else None, captions, pairs, objective == "words"
    )
    return task, {"objective": objective, "captions": len(captions), "pairs": len(pairs or {})}


def _check_aligned(run: GeneratorRun) -> None:
    """Refuse VDG's second stage without its first, which aligns the projection.

    The released code goes from a random projection to the second stage although the paper requires the first
    (docs/PAPERS.md#delta-generator).
    """
    given = bool(run.qformer_source) and run.source_projection
    network = run.generator.settings
    if given or not isinstance(network, GeneratorConfig) or network.reader_tuning == "always":
        return
    raise ConfigError(
        f"generator.settings.reader_tuning={network.reader_tuning!r} holds the reader fixed while the labelled "
        f"triplets are trained on, its projection starts at random, and alignment={run.alignment!r} finds nothing to "
        "align it by. Give captions (alignment=captions), or start from an aligned checkpoint (qformer_source, "
        "source_projection)."
    )


def _alignment_data(
    run: GeneratorRun, features: FeatureLookup, labelled: Labelled
) -> tuple[Mapping[str, str], FeatureLookup]:
    """Captions and features of the generator's own data, or of another data set (VDG's first stage)."""
    other = run.alignment_training
    if other.data is None:
        return labelled.captions, features
    store, wanted = FeatureStore.open_many(list(other.features)), read_manifest(run.towers).extra["encoder_digest"]
    check_tower(other.features, store.info.encoder_digest, run.towers, wanted)
    return read_dataset(other.data).captions, store


def caption_pairs(triplets: Sequence[Triplet], bags: Mapping[str, Bags]) -> dict[tuple[str, str], Bags]:
    """Bags of the difference of two captions, for every pair of images of one group; no modification text is read."""
    groups: dict[str, set[str]] = {}
    for row in triplets:
        groups.setdefault(row.group_id or row.triplet_id, set()).update((row.reference_id, row.target_id))
    pairs: dict[tuple[str, str], Bags] = {}
    for images in groups.values():
        known = sorted(image for image in images if image in bags)
        pairs |= {pair: difference_bags(bags[pair[0]], bags[pair[1]]) for pair in combinations(known, 2)}
    return pairs


def _objective(
    run: GeneratorRun, model: ModificationTextModel, bags: Mapping[str, Bags], captions: Mapping[str, str]
) -> str:
    if run.alignment != "auto":
        if not captions or (run.alignment == "bags" and len(bags) < len(captions)):
            raise DataError(
                f"alignment={run.alignment!r} cannot be done: {len(captions)} captions, {len(bags)} of them in the "
                "words of the embedded world (bags needs all). Use alignment=auto or none."
            )
        return run.alignment
    if not captions:
        return "none"
    fits = len(bags) == len(captions) and all(len(row) == model.config.qformer.queries for row in bags.values())
    language, words = model.language, {word for row in bags.values() for bag in row for word in bag}
    unknown = language.tokenizer.unk_token_id
    return "bags" if fits and not any(unknown in language.word_ids(word) for word in words) else "captions"
