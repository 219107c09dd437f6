import numpy as np
import pytest

from cirray.core.artifacts import read_manifest
from cirray.core.config import load_config
from cirray.core.errors import ArtifactError, ConfigError
from cirray.models.towers.hf_blip2 import load_vision_tower
from cirray.models.towers.language import build_word_tokenizer, load_language_model, vocabulary_hash
from cirray.models.towers.places import SHAPES_LANGUAGE, SHAPES_VISION, asset_folder
from cirray.pipelines.features import towers
from cirray.pipelines.features.config import TowersRun
from cirray.pipelines.features.towers import exact_from_text, run_towers, shapes_passage, shapes_words
from cirray.pipelines.features.vision_sources import cell_batch

TINY = (
    "language=train", "language_model.width=16", "language_model.layers=1", "language_model.heads=2",
    "language_model.intermediate=16", "language_training.steps=4", "language_training.batch=4",
    "language_training.checkpoint_every=2",
)  # fmt: skip


def test_the_shipped_language_model_tells_a_difference_from_text_alone():
    quality = exact_from_text(load_language_model(asset_folder(SHAPES_LANGUAGE)), count=80, seed=3)
    assert quality["forward"].exact > 0.9 and quality["reverse"].exact > 0.9


def test_an_untrained_language_model_tells_none():
    from cirray.models.towers.config import LanguageModelConfig
    from cirray.models.towers.language import build_language_model

    untrained = build_language_model(LanguageModelConfig(layers=1), build_word_tokenizer(shapes_words()))
    assert exact_from_text(untrained, count=20)["forward"].exact == 0


def test_the_shipped_language_model_has_the_vocabulary_of_the_grammar_and_prompts():
    shipped = load_language_model(asset_folder(SHAPES_LANGUAGE))
    assert shipped.vocabulary_hash == vocabulary_hash(build_word_tokenizer(shapes_words()))
    text = shapes_passage(np.random.default_rng(0))
    assert shipped.tokenizer.unk_token_id not in shipped.token_ids(f"{text.prompt} {text.answer}")


def test_the_shipped_vision_tower_tells_the_cells_apart():
    tower = load_vision_tower(asset_folder(SHAPES_VISION))
    from cirray.models.config import VisionTowerConfig

    batch = cell_batch(VisionTowerConfig(), np.random.default_rng(5), 150)
    tokens = tower(batch.images_BHWC)[:, 1:].flatten(0, 1).numpy()
    for name, labels in batch.cells.items():
        known = labels.flatten().numpy() >= 0
        rows, classes = tokens[known], labels.flatten().numpy()[known]
        half = len(rows) // 2
        weights = np.linalg.lstsq(rows[:half], np.eye(classes.max() + 1)[classes[:half]], rcond=None)[0]
        assert ((rows[half:] @ weights).argmax(1) == classes[half:]).mean() > 0.97, name


def test_towers_from_assets_are_an_artifact_and_a_second_run_does_nothing(tmp_path):
    run = load_config(TowersRun, None, [f"out={tmp_path / 'towers'}"])
    manifest = run_towers(run)
    assert manifest.kind == "towers" and run_towers(run) == manifest
    tower = load_vision_tower(tmp_path / "towers" / "vision")
    assert tower.digest == manifest.extra["encoder_digest"] == load_vision_tower(asset_folder(SHAPES_VISION)).digest
    assert load_language_model(tmp_path / "towers" / "lm").vocabulary_hash == manifest.extra["vocabulary_hash"]


def test_a_killed_training_goes_on_from_its_checkpoint_to_the_same_towers(tmp_path, monkeypatch):
    run_towers(load_config(TowersRun, None, [*TINY, f"out={tmp_path / 'whole'}"]))
    run = load_config(TowersRun, None, [*TINY, f"out={tmp_path / 'killed'}"])
    original, seen = towers.shapes_passage, []

    def killed(rng):
        seen.append(1)
        if len(seen) > 13:
            raise KeyboardInterrupt
        return original(rng)

    monkeypatch.setattr(towers, "shapes_passage", killed)
    with pytest.raises(KeyboardInterrupt):
        run_towers(run)
    with pytest.raises(ArtifactError, match="half-written"):
        read_manifest(run.out)
    seen.clear()
    monkeypatch.setattr(towers, "shapes_passage", lambda rng: seen.append(1) or original(rng))
    run_towers(run)
    assert len(seen) == 8
    first, second = (tmp_path / name / "lm" / "model.safetensors" for name in ("whole", "killed"))
    assert first.read_bytes() == second.read_bytes()
    assert not list((tmp_path / "killed").glob("work*"))


def test_patches_that_cross_cells_and_missing_captions_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not divide a cell"):
        run_towers(
            load_config(TowersRun, None, ["vision=train", "vision_model.patch_size=12", f"out={tmp_path / 'a'}"])
        )
    with pytest.raises(ArtifactError, match="No vision tower could be read"):
        run_towers(load_config(TowersRun, None, [f"vision={tmp_path / 'none'}", f"out={tmp_path / 'b'}"]))
