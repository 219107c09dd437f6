"""How a generator's frozen language model is held: its type, and 8 or 4 bits where bitsandbytes is installed."""

import importlib.util

import pytest
import torch

from cirray.core.config import load_config
from cirray.core.errors import ConfigError
from cirray.generators.config import GeneratorConfig, ReaderConfig
from cirray.generators.mtg import ModificationTextModel
from cirray.generators.store import load_generator, load_model, save_generator
from cirray.models.towers.config import FrozenLanguageConfig, LanguageModelConfig
from cirray.models.towers.language import (
    build_language_model,
    build_word_tokenizer,
    language_dtype,
    load_language_model,
    quantized_arguments,
)
from cirray.pipelines.texts.config import GenerateRun, GeneratorRun

SIZES = LanguageModelConfig(width=16, layers=1, heads=2, intermediate=16, positions=64)
BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    tokenizer = build_word_tokenizer(["what change turns one image into the other make it red"])
    language = build_language_model(SIZES, tokenizer)
    config = GeneratorConfig(qformer=ReaderConfig(width=16, layers=1, heads=2, queries=2, intermediate=16))
    save_generator(ModificationTextModel(config, language, 8), tmp_path / "g")
    language.save(tmp_path / "lm")
    return tmp_path


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_the_language_model_takes_the_type_and_the_rest_stays_fp32(folder, name):
    model = load_model(folder / "g", FrozenLanguageConfig(language_dtype=name))
    assert model.lm.dtype == language_dtype(name) and model.projection.weight.dtype == torch.float32
    writer = load_generator(folder / "g", language_dtype=name)
    assert writer.model.lm.dtype == language_dtype(name)


def test_answers_in_16_bits_are_near_those_in_32_and_auto_keeps_the_stored_type(folder):
    patches = torch.randn(3, 4, 8)
    exact, rough = (load_model(folder / "g", FrozenLanguageConfig(language_dtype=n)) for n in ("float32", "bfloat16"))
    answers = exact.encode_answers(["make it red", "red", "make it"])
    losses = [float(model(patches, patches.flip(0), answers).total.detach()) for model in (exact, rough)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[1] != losses[0]
    stored = load_language_model(folder / "lm", dtype=language_dtype("bfloat16"))
    stored.save(folder / "half")
    assert load_language_model(folder / "half", dtype=language_dtype("auto")).model.dtype == torch.bfloat16


def test_gradients_pass_through_a_language_model_in_16_bits_and_do_not_reach_it(folder):
    model = load_model(folder / "g", FrozenLanguageConfig(language_dtype="bfloat16")).train()
    patches = torch.randn(2, 4, 8)
    model(patches, patches.flip(0), model.encode_answers(["red", "make it"])).total.backward()
    assert model.projection.weight.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in model.lm.parameters())


@pytest.mark.skipif(BITSANDBYTES, reason="bitsandbytes is installed")
@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_without_bitsandbytes_quantisation_is_one_sentence(folder, bits):
    with pytest.raises(ConfigError, match=f"language_quantization={bits} needs the package bitsandbytes"):
        load_language_model(folder / "lm", quantization=bits)
    with pytest.raises(ConfigError, match="language_dtype=bfloat16"):
        load_generator(folder / "g", language_quantization=bits)


def test_with_bitsandbytes_transformers_is_asked_for_quantised_weights_on_the_device(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    asked = quantized_arguments("8bit", torch.float32, "cuda")
    assert asked["quantization_config"].load_in_8bit and asked["device_map"] == {"": "cuda"}
    assert asked["dtype"] == torch.bfloat16 and quantized_arguments("none", None, "cpu") == {}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (["generator.settings.tuning=full", "language_dtype=bfloat16"], "loses small updates"),
        (["generator.settings.tuning=full", "language_quantization=8bit"], "cannot be trained in full"),
        (["language_quantization=4bit"], "embed_language_model=false"),
        (["language_dtype=float64"], "float32"),
    ],
)
def test_types_that_cannot_be_trained_are_refused_in_words(fields, words):
    with pytest.raises(ConfigError, match=words):
        load_config(GeneratorRun, None, fields)


def test_what_may_be_combined_is_accepted():
    for fields in (
        ["generator.settings.tuning=lora", "language_dtype=bfloat16"],
        [
            "generator.settings.tuning=lora",
            "language_quantization=4bit",
            "generator.settings.embed_language_model=false",
        ],
    ):
        assert load_config(GeneratorRun, None, fields)


def test_another_type_is_part_of_what_texts_depend_on():
    usual, half = GenerateRun(), GenerateRun(generator={"settings": {"language_dtype": "bfloat16"}})
    assert usual.identity() != half.identity()
