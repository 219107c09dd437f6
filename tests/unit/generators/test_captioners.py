"""Captioners: the data set's own captions, the embedded world's, and any image-to-text model of Hugging Face."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
from made_artifacts import stage_of

from cirray.core.config import validate
from cirray.core.errors import ArtifactError, ConfigError, DataError
from cirray.generators.captioners.base import CaptionerSetup, Picture
from cirray.generators.captioners.config import CAPTIONERS, CaptionerChoice, HfConfig
from cirray.generators.store import save_generator

FIXTURES = Path(__file__).parents[2] / "fixtures"
TINY = SimpleNamespace(**runpy.run_path(str(FIXTURES / "tiny_pipeline.py")))
MODELS = SimpleNamespace(**runpy.run_path(str(FIXTURES / "small_captioner.py")))


def made_by(kind, batch=64, **settings):
    """A captioner as the stage makes it."""
    choice = validate(CaptionerChoice, {"kind": kind, "settings": settings})
    return CAPTIONERS.get(choice.kind)(choice.settings, CaptionerSetup(batch=batch))


def given_features(monkeypatch, features):
    """Features that lie nowhere."""
    monkeypatch.setattr("cirray.features.store.FeatureStore.open_many", lambda uris: features)


def test_captioners_are_found_by_name():
    assert CAPTIONERS.names() == ["cells", "existing", "hf", "lmm", "small"]
    with pytest.raises(ConfigError, match="Unknown captioner 'smal'. Did you mean 'small'"):
        CAPTIONERS.get("smal")


def test_the_instruction_names_the_thing_and_the_number_of_words():
    assert HfConfig(source="x", noun="dress", words=5).instruction == "Describe the dress in 5 words."
    with pytest.raises(ConfigError, match="Unknown caption prompt 'caption/9'"):
        validate(HfConfig, {"source": "x", "prompt": "caption/9"})


def test_existing_captions_are_passed_on_and_missing_ones_are_named():
    made = made_by("existing")
    told = Picture("a", known=" a red star ")
    assert made.caption([told]) == ["a red star"] and made.content(told)
    with pytest.raises(DataError, match="'b' has no caption"):
        made.content(Picture("b"))


def test_the_small_captioner_reads_features_and_does_not_depend_on_the_batch(model_of, features, tmp_path, monkeypatch):
    stage = stage_of(str(tmp_path / "generator"), "generator", {})
    save_generator(model_of(), stage.local)
    stage.publish({})
    pictures = [Picture(name) for name in "abcd"]
    given_features(monkeypatch, features)
    one, four = (made_by("small", size, source=str(tmp_path / "generator")) for size in (1, 4))
    assert one.caption(pictures) == four.caption(pictures) and one.digest == four.digest
    assert one.content(pictures[0]) != one.content(pictures[1])
    with pytest.raises(DataError, match="'ghost' has no features"):
        one.content(Picture("ghost"))


@pytest.mark.parametrize("family", ["llava", "blip2"])
def test_models_of_hugging_face_caption_in_batches_without_repeating_the_prompt(family, tmp_path):
    folder = getattr(MODELS, f"save_{family}")(tmp_path / family)
    images = Path(TINY.write_images(tmp_path / "images", 4, broken=(3,)))
    pictures = [Picture(path.stem, str(path)) for path in sorted(images.iterdir())]
    made = [made_by("hf", size, source=folder, words=3) for size in (1, 3)]
    alone, together = (captioner.caption(pictures[:3]) for captioner in made)
    assert alone == together and any(alone) and len(set(alone)) > 1
    assert not any("describe the image" in text.lower() or "USER" in text for text in alone)
    assert made[0].digest == made[1].digest != made_by("hf", source=folder, words=5).digest
    assert made[0].content(pictures[0]) != made[0].content(pictures[1])
    with pytest.raises(DataError, match="img-0003"):
        made[0].content(pictures[3])


def test_a_folder_without_a_model_is_refused_in_words(tmp_path):
    with pytest.raises(ArtifactError, match="No image-to-text model could be read from"):
        made_by("hf", source=str(tmp_path))


def test_soft_tokens_are_read_back_as_the_phrases_they_stand_for(tmp_path, monkeypatch):
    """A generator whose soft tokens are the bags' own vectors, with some noise, gives the scenes' captions."""
    import numpy as np
    import torch

    from cirray.data.shapes.corpus import bags, caption_bags
    from cirray.data.shapes.grammar import vocabulary
    from cirray.data.shapes.scenes import random_scene
    from cirray.generators.config import GeneratorConfig, ReaderConfig
    from cirray.generators.mtg import ModificationTextModel
    from cirray.generators.prompts import all_prompts
    from cirray.models.towers.config import LanguageModelConfig
    from cirray.models.towers.language import bag_ids, build_language_model, build_word_tokenizer, embed_bags

    torch.manual_seed(0)
    tokenizer = build_word_tokenizer([*all_prompts(), " ".join(vocabulary())])
    language = build_language_model(LanguageModelConfig(width=64, layers=1, heads=2, intermediate=32), tokenizer)
    scenes = [random_scene(np.random.default_rng(seed)) for seed in range(6)]
    for queries in (9, 3):
        qformer = ReaderConfig(width=16, layers=1, heads=2, queries=queries, intermediate=16)
        stage = stage_of(str(tmp_path / f"generator{queries}"), "generator", {})
        save_generator(ModificationTextModel(GeneratorConfig(qformer=qformer), language, 12), stage.local)
        stage.publish({})

    class Features:
        def get(self, ids):
            return np.zeros((len(ids), 4, 12), dtype=np.float16) + np.array([int(n) for n in ids])[:, None, None]

        def __contains__(self, name):
            return True

    given_features(monkeypatch, Features())
    made = made_by("cells", 4, source=str(tmp_path / "generator9"))

    def soft(patches_BPD):
        numbers = patches_BPD[:, 0, 0].int().tolist()
        vectors = [embed_bags(language, bag_ids(language, bags(scenes[n]), 12)) for n in numbers]
        exact = torch.stack(vectors).detach()
        return exact + 0.2 * exact.std() * torch.randn(exact.shape, generator=torch.Generator().manual_seed(1))

    monkeypatch.setattr(made._model, "read_image", soft)
    texts = made.caption([Picture(str(number)) for number in range(6)])
    assert [caption_bags(text) for text in texts] == [bags(scene) for scene in scenes]
    with pytest.raises(ConfigError, match="needs one soft token for each of 9 cells.*has 3. Use captioner=small"):
        made_by("cells", source=str(tmp_path / "generator3"))
