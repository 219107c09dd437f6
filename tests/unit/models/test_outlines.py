"""Modules of a source's sizes without its weights: as many weights as the real one has, none of them there."""

import json
import runpy
from pathlib import Path

import pytest
import torch

from cirray.core.errors import ArtifactError, ConfigError
from cirray.models.config import DualEncoderConfig, QFormerConfig
from cirray.models.dual import build_dual
from cirray.models.outlines import (
    Words,
    outline_dual,
    outline_language,
    outline_tower,
    qformer_sizes,
    settings_of,
    weightless,
)
from cirray.models.published import BERT_WORDS, published
from cirray.models.towers.hf_blip2 import load_vision_tower
from cirray.models.towers.language import load_language_model
from cirray.models.towers.open_clip import OpenClipTower
from cirray.models.towers.places import SHAPES_LANGUAGE, SHAPES_VISION, asset_folder

FIXTURES = Path(__file__).parents[2] / "fixtures"
BLIP2 = runpy.run_path(str(FIXTURES / "small_blip2.py"))
CLIP = runpy.run_path(str(FIXTURES / "small_clip.py"))
OPENAI = runpy.run_path(str(FIXTURES / "openai_layout.py"))


def count(module):
    return sum(weight.numel() for weight in module.parameters())


def outlined(make, *arguments):
    with weightless():
        return make(*arguments)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    torch.save({"epoch": 1, "CLIP": OPENAI["clip"]("resnet")}, root / "tuned.pt")
    return {
        "retrieval": BLIP2["save_retrieval"](BLIP2["retrieval"](), root / "retrieval"),
        "instruct": BLIP2["save_instruct"](BLIP2["instruct"](), root / "instruct"),
        "t5": BLIP2["save_instruct"](BLIP2["instruct_t5"](), root / "t5"),
        "hf_clip": CLIP["save_hf"](CLIP["hf_model"](), root / "hf_clip"),
        "open_clip": CLIP["save_open"](CLIP["open_model"](), root / "open_clip"),
        "clip4cir": str(root / "tuned.pt"),
    }


@pytest.mark.parametrize("name", ["retrieval", "instruct", "hf_clip", "open_clip", "clip4cir"])
def test_a_towers_outline_is_its_size(folders, name):
    real, outline = load_vision_tower(folders[name]), outlined(outline_tower, folders[name])
    assert count(outline) == count(real) and type(outline) is type(real)
    assert (outline.num_tokens, outline.width, outline.image_size) == (real.num_tokens, real.width, real.image_size)
    assert all(weight.untyped_storage().device.type == "meta" for weight in outline.parameters())


@pytest.mark.parametrize("name", ["instruct", "t5"])
def test_a_language_models_outline_is_its_size_and_has_its_tokenizer(folders, name):
    real, outline = load_language_model(folders[name]), outlined(outline_language, folders[name])
    assert count(outline.model) == count(real.model)
    assert outline.width == real.width
    assert outline.encodes == real.encodes and outline.token_ids("what change") == real.token_ids("what change")


@pytest.mark.parametrize(("name", "width"), [("hf_clip", 12), ("open_clip", 12), ("clip4cir", OPENAI["EMBED"])])
def test_a_dual_encoders_outline_is_its_size(folders, name, width):
    config = DualEncoderConfig(source=folders[name], fusion="combiner")
    assert count(outlined(outline_dual, config, width)) == count(build_dual(config, ["x"], width))


def test_a_q_formers_sizes_are_read_from_the_config_alone(folders):
    sizes, words, patches, vectors = qformer_sizes(folders["retrieval"], QFormerConfig())
    assert (sizes.width, sizes.layers, sizes.queries, words, patches, vectors) == (
        16,
        4,
        3,
        len(BLIP2["reader"]()),
        24,
        8,
    )
    assert qformer_sizes(folders["instruct"], QFormerConfig())[3] == 0


@pytest.mark.parametrize(
    ("name", "billions", "words"),
    [
        ("Salesforce/instructblip-vicuna-7b", 6.74, 32001),
        ("Salesforce/instructblip-vicuna-13b", 13.02, 32001),
        ("Salesforce/instructblip-flan-t5-xl", 2.85, 32128),
        ("Salesforce/instructblip-flan-t5-xxl", 11.14, 32128),
    ],
)
def test_published_language_models_have_their_published_sizes(name, billions, words):
    language = outlined(outline_language, name)
    assert count(language.model) / 1e9 == pytest.approx(billions, abs=0.01) and len(language.tokenizer) == words
    assert qformer_sizes(name, QFormerConfig())[:3] == (
        QFormerConfig.blip2().model_copy(update={"attention": "sdpa"}), BERT_WORDS, 1408,
    )  # fmt: skip


def test_published_towers_have_their_published_sizes():
    tower = outlined(outline_tower, "Salesforce/blip2-itm-vit-g")
    assert (tower.num_tokens, tower.width) == (257, 1408) and round(count(tower) / 1e6) == 986
    named = outlined(outline_tower, "open_clip:RN50x4-quickgelu=nowhere.safetensors")
    assert isinstance(named, OpenClipTower) and named.width == 640


@pytest.mark.parametrize(
    ("name", "tokens", "millions"),
    [("openai/clip-vit-large-patch14", 1024, 427.6), ("openai/clip-vit-base-patch32", 768, 151.3)],
)
def test_published_clip_models_have_their_published_sizes(name, tokens, millions):
    # 303.97 and 87.85 million in the vision towers with their projections, the rest in the texts' (and one scale).
    tower = outlined(outline_tower, name)
    dual = outlined(outline_dual, DualEncoderConfig(source=name), tower.width)
    assert (count(tower) + count(dual.text_encoder)) / 1e6 == pytest.approx(millions, abs=0.1)
    assert tower.with_tokens("unprojected").width == tokens and tower.num_tokens == 1


@pytest.mark.parametrize(
    ("name", "tokens", "width", "millions"),
    [
        ("facebook/dinov2-base", 257, 768, 86.6), ("facebook/dinov2-with-registers-giant", 257, 1536, 1136.5),
        ("facebook/dinov3-vitl16-pretrain-lvd1689m", 197, 1024, 303.1),
        ("facebook/dinov3-vith16plus-pretrain-lvd1689m", 197, 1280, 840.6),
        ("facebook/dinov3-vit7b16-pretrain-lvd1689m", 197, 4096, 6716.4),
        ("google/siglip-so400m-patch14-384", 729, 1152, 413.0),
        ("google/siglip2-so400m-patch16-naflex", 256, 1152, 412.6),
        ("google/vit-base-patch16-224", 197, 768, 85.8),
    ],
)  # fmt: skip
def test_published_image_encoders_have_their_published_sizes(name, tokens, width, millions):
    tower = outlined(outline_tower, name)
    assert (tower.num_tokens, tower.width) == (tokens, width)
    assert count(tower) / 1e6 == pytest.approx(millions, abs=0.1)


def test_llama_2_has_its_published_size_and_a_folder_to_be_filled_is_known_by_its_name(tmp_path):
    llama = outlined(outline_language, "meta-llama/Llama-2-13b-hf")
    assert count(llama.model) / 1e9 == pytest.approx(13.02, abs=0.01) and len(llama.tokenizer) == 32000
    assert published("~/weights/clip-vit-large-patch14").projection_dim == 768
    folder = tmp_path / "clip-vit-large-patch14"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64}))
    assert settings_of(str(folder)).hidden_size == 64  # what is there says more than a name
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))
    with pytest.raises(ArtifactError, match="cannot be read: .*hidden size .8. is not a multiple"):
        settings_of(str(folder))


def test_unknown_sources_are_refused_in_words(tmp_path):
    assert published("some/model") is None
    with pytest.raises(ConfigError, match="are not known here.*Fetch its config.json"):
        settings_of("some/model")
    with pytest.raises(ConfigError, match="names no architecture of open_clip"):
        outlined(outline_tower, "open_clip:RN5000=x")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nonsense"}))
    with pytest.raises(ArtifactError, match="cannot be read"):
        settings_of(str(tmp_path))
    with pytest.raises(ConfigError, match="a Q-Former comes from one of"):
        qformer_sizes(str(asset_folder(SHAPES_VISION)), QFormerConfig())


def test_the_stand_in_for_a_tokenizer_counts_words():
    words = Words(9)
    assert len(words) == 9 and len(words("a b c")["input_ids"]) == 3
    assert words(["a b", "a"], max_length=8)["input_ids"].shape == (2, 4)


def test_the_shipped_language_model_shares_its_word_table_in_the_outline_too():
    real = load_language_model(asset_folder(SHAPES_LANGUAGE))
    outline = outlined(outline_language, "asset")
    assert real.model.config.tie_word_embeddings and count(outline.model) == count(real.model)
