"""Stage 1: the towers, frozen from then on: shipped, trained here, or fetched. No labelled triplet is read."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cirray.core.artifacts import Manifest, open_stage
from cirray.core.errors import DataError
from cirray.core.seeding import derive_seed, numpy_generator
from cirray.core.unfinished import stage_function
from cirray.data.config import DataConfig
from cirray.data.readers import read_dataset
from cirray.data.shapes.corpus import DESCRIBE, Passage, bags, passage, reserved_change
from cirray.data.shapes.grammar import vocabulary
from cirray.evaluation.texts import TextQuality, judge_texts
from cirray.generators.config import DecodingConfig
from cirray.generators.decoding import decode
from cirray.generators.prompts import all_prompts, prompt
from cirray.models.towers.clip_tower import with_tokens
from cirray.models.towers.hf_blip2 import VisionTower, build_vision_tower, load_vision_tower
from cirray.models.towers.language import (
    LanguageModel,
    bag_ids,
    build_language_model,
    build_word_tokenizer,
    embed_bags,
    load_language_model,
)
from cirray.models.towers.places import SHAPES_LANGUAGE, SHAPES_VISION, asset_folder
from cirray.pipelines.features.config import TowersRun
from cirray.pipelines.features.vision_sources import (
    CELL_CLASSES,
    caption_source,
    captions_digest,
    cell_batch,
    cell_source,
)
from cirray.training.callbacks import train_stage
from cirray.training.language import Corpus, LanguageTask
from cirray.training.vision import VisionTask
from cirray.types import stable_id

VISION, LANGUAGE, TRAIN = "vision", "lm", "train"
CHANGE = "change/1"
_DIFFERENCE_WORDS = "same from to"
_JUDGED = 500


@stage_function
def run_towers(run: TowersRun) -> Manifest:
    """Make the towers artifact; a killed training goes on from its last checkpoint.

    Returns: Manifest of kind "towers": metrics `vision` (accuracy per head on fresh scenes) and `language` (exact edits
        from described scenes, forward and reverse, without images) for towers of the embedded world.

    Raises ArtifactError when a named tower cannot be read, or another run's output is at `out`, and DataError when
    `data` lacks the captions that its objective needs.
    """
    stage = open_stage(run, "towers", _inputs(run), ["work-*/checkpoints/*"])
    if stage.finished:
        return stage.finished
    metrics: dict[str, Any] = {}
    vision, metrics["vision"] = _vision(run, stage.local / "work-vision")
    vision.save(stage.local / VISION)
    language, metrics["language"] = _language(run, stage.local / "work-lm")
    language.save(stage.local / LANGUAGE)
    for name in ("work-vision", "work-lm"):
        shutil.rmtree(stage.local / name, ignore_errors=True)
    counts = {"vision_weights": _weights(vision), "language_weights": _weights(language.model)}
    extra = {
        "encoder_digest": vision.digest, "vocabulary_hash": language.vocabulary_hash,
        "vision": run.vision, "language": run.language,
    }  # fmt: skip
    return stage.publish(counts, {name: value for name, value in metrics.items() if value}, extra)


def exact_from_text(language: LanguageModel, count: int = _JUDGED, seed: int = 0) -> dict[str, TextQuality]:
    """Accuracy of the language model without images: the change between two described scenes.

    Scenes are reserved ones, fresh for this seed; keys "forward" and "reverse".
    """
    rng = numpy_generator(seed, "language model evaluation")
    changes = [reserved_change(rng) for _ in range(count)]
    found = {}
    for name, ordered in (("forward", changes), ("reverse", [change.reversed() for change in changes])):
        texts = tell(language, [(*bags(change.reference), *bags(change.target)) for change in ordered])
        found[name] = judge_texts(texts, [(change.reference, change.target) for change in ordered])
    return found


def tell(language: LanguageModel, described: list[tuple[tuple[str, ...], ...]], batch: int = 256) -> list[str]:
    """Greedy answers to the change prompt after slots of bags (equally many in every row)."""
    question = [(word,) for word in prompt(CHANGE).split()]
    texts = []
    for begin in range(0, len(described), batch):
        rows = [bag_ids(language, [*slots, *question], 12) for slots in described[begin : begin + batch]]
        with torch.inference_mode():
            prefix_BLE = embed_bags(language, torch.stack(rows))
        decoded = decode(language.model.eval(), prefix_BLE, DecodingConfig(), language.end_id)
        texts += [str(language.tokenizer.decode(row.ids)) for row in decoded]
    return texts


def shapes_passage(rng: np.random.Generator) -> Passage:
    """One text of the embedded world's corpus, with the generator's own instruction."""
    return passage(rng, prompt(CHANGE))


def shapes_words() -> list[str]:
    """Every word that the embedded world's language model must know."""
    return [*vocabulary(), *_DIFFERENCE_WORDS.split(), *DESCRIBE.split(), *" ".join(all_prompts()).split()]


def _vision(run: TowersRun, work: Path) -> tuple[VisionTower, dict[str, float]]:
    if run.vision != TRAIN:
        tower = load_vision_tower(asset_folder(SHAPES_VISION) if run.vision == "asset" else run.vision)
        if run.clip_tokens != "embedding":
            tower = with_tokens(tower, run.clip_tokens)
        return tower.with_transform(tower.transform.with_mode(run.image_mode)), {}
    config = run.vision_training
    torch.manual_seed(derive_seed(config.seed, "vision tower"))
    tower = build_vision_tower(run.vision_model, run.transform).to(run.device)
    if config.objective == "captions":
        source, words = caption_source(run)
        task = VisionTask(tower, {}, source, words)
        train_stage(task, config, work, "train the vision tower")
        return _frozen(tower), {}
    task = VisionTask(tower, CELL_CLASSES, cell_source(run.vision_model, config))
    train_stage(task, config, work, "train the vision tower")
    rng = numpy_generator(config.seed, "vision evaluation")
    fresh = cell_batch(run.vision_model, rng, _JUDGED, config.clutter)
    return _frozen(tower), task.accuracy(fresh.to(run.device))


def _language(run: TowersRun, work: Path) -> tuple[LanguageModel, dict[str, Any]]:
    if run.language != TRAIN:
        source = asset_folder(SHAPES_LANGUAGE) if run.language == "asset" else run.language
        return load_language_model(source), {}
    config = run.language_training
    torch.manual_seed(derive_seed(config.seed, "language model"))
    if run.corpus == "data":
        corpus, words = data_corpus(run.data)
    else:
        corpus, words = shapes_passage, shapes_words()
    language = build_language_model(run.language_model, build_word_tokenizer(words))
    torch.nn.Module.to(language.model, run.device)
    history = train_stage(LanguageTask(language, corpus, config), config, work, "train the language model")
    language.model.eval().cpu()
    metrics: dict[str, Any] = {"answer_loss": round(history[-1]["answer"], 4)}
    if run.corpus == "shapes":
        metrics |= {name: quality.to_dict() for name, quality in exact_from_text(language).items()}
    return language, metrics


def _inputs(run: TowersRun) -> dict[str, str]:
    """Names that are no places, and the digest of what is read of `data`: nothing, captioned images, or texts."""
    named = {name: value for name in ("vision", "language") if (value := getattr(run, name)) in ("asset", TRAIN)}
    read = []
    if run.vision == TRAIN and run.vision_training.objective == "captions":
        read.append(captions_digest(run))
    if run.language == TRAIN and run.corpus == "data":
        read.append(stable_id(*data_texts(run.data)))
    return {**named, "data": "+".join(read)}


def _frozen(tower: VisionTower) -> VisionTower:
    return VisionTower(tower.model.cpu(), tower.transform)


def _weights(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


_CHANGE, _DESCRIBE = "change/1", "describe/1"


def data_corpus(config: DataConfig) -> tuple[Corpus, list[str]]:
    """Captions and training texts of a data set as passages without images, and all texts for the vocabulary.

    Unlike the embedded world's, such a model cannot describe a difference, so the generator should tune it
    (`generator.settings.tuning=full` or `lora`).

    Raises DataError when there is no text at all.
    """
    changes, captions = data_texts(config)

    def corpus(rng: np.random.Generator) -> Passage:
        use_change = bool(changes) and (not captions or bool(rng.integers(2)))
        texts, version = (changes, _CHANGE) if use_change else (captions, _DESCRIBE)
        return Passage((), prompt(version), texts[int(rng.integers(len(texts)))])

    return corpus, [*changes, *captions, *all_prompts()]


def data_texts(config: DataConfig) -> tuple[list[str], list[str]]:
    """The different training texts and captions of a data set, sorted.

    Raises DataError when there is no text at all.
    """
    dataset = read_dataset(config)
    changes = sorted({triplet.modification for triplet in dataset.split("train")})
    captions = sorted(set(dataset.captions.values()))
    if not changes and not captions:
        raise DataError(f"{dataset.name!r} has neither captions nor training texts; there is nothing to learn from.")
    return changes, captions
