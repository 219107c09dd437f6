import json

import pytest
import torch

from cirray.core.errors import ArtifactError, ConfigError
from cirray.generators.config import DecodingConfig
from cirray.generators.store import load_generator, load_model, save_generator, save_template
from cirray.generators.template import TemplateGenerator
from cirray.types import Pair

PAIRS = [Pair("p1", "a", "b"), Pair("p2", "c", "d")]
OPTIONS = DecodingConfig(max_new_tokens=5, keep_unfinished=True)


@pytest.mark.parametrize("fields", [{}, {"passes": ("reference", "target", "difference"), "role_tags": True}])
def test_a_saved_generator_writes_the_same_texts(model_of, features, tmp_path, fields):
    from cirray.generators.writer import TextWriter

    model = model_of(**fields)
    if fields:
        torch.nn.init.normal_(model.role_tags_RD)
    expected = TextWriter(model, OPTIONS).generate(PAIRS, features)
    save_generator(model, tmp_path)
    loaded = load_generator(tmp_path, decoding=OPTIONS)
    assert loaded.generate(PAIRS, features) == expected
    assert loaded.digest == load_generator(tmp_path, decoding=OPTIONS).digest != load_generator(tmp_path).digest
    assert loaded.prompt_version == "change/1"


def test_adapters_are_stored_beside_an_untouched_language_model(model_of, images_BPD, tmp_path):
    pytest.importorskip("peft")
    answers = model_of().encode_answers(["make it red"] * 5)
    frozen = model_of()(*images_BPD, answers).total
    model = model_of(tuning="lora")
    for name, weight in model.lm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    save_generator(model, tmp_path)
    assert {item.name for item in tmp_path.iterdir()} >= {"adapter", "lm", "model.safetensors"}
    tuned = model.eval()(*images_BPD, answers).total
    assert torch.allclose(load_model(tmp_path)(*images_BPD, answers).total, tuned, rtol=1e-4)
    assert not torch.allclose(tuned, frozen, rtol=1e-2)


def test_the_language_model_can_be_a_reference_and_must_be_the_same_one(language, model_of, tmp_path, images_BPD):
    from cirray.generators.mtg import ModificationTextModel
    from cirray.models.towers.language import build_language_model, build_word_tokenizer, load_language_model

    language.save(tmp_path / "shared")
    base = model_of(embed_language_model=False)
    model = ModificationTextModel(base.config, load_language_model(tmp_path / "shared"), base.qformer.patch_width)
    save_generator(model, tmp_path / "generator")
    assert not (tmp_path / "generator" / "lm").exists()
    answers = model.encode_answers(["add red"] * 5)
    again = load_model(tmp_path / "generator")
    assert torch.allclose(again(*images_BPD, answers).total, model.eval()(*images_BPD, answers).total)

    from cirray.models.towers.config import LanguageModelConfig

    other = build_language_model(
        LanguageModelConfig(width=16, layers=1, heads=2), build_word_tokenizer(["other words"])
    )
    other.save(tmp_path / "shared")
    with pytest.raises(ArtifactError, match="has vocabulary .* was trained with"):
        load_model(tmp_path / "generator")


def test_an_empty_folder_is_no_generator(tmp_path):
    with pytest.raises(ArtifactError, match="holds no generator"):
        load_generator(tmp_path)


def test_weights_of_another_configuration_are_refused(model_of, tmp_path):
    save_generator(model_of(), tmp_path)
    path = tmp_path / "config.json"
    description = json.loads(path.read_text())
    description["generator"] |= {"passes": ["reference", "target", "difference"], "role_tags": True}
    path.write_text(json.dumps(description))
    model_of().reader.save_pretrained(str(tmp_path / "reader"))
    with pytest.raises(ArtifactError, match="do not fit its configuration"):
        load_model(tmp_path)


def test_unknown_options_answer_with_the_known_ones(model_of, tmp_path):
    save_generator(model_of(), tmp_path)
    with pytest.raises(ConfigError, match="Did you mean 'decoding.beams'"):
        load_generator(tmp_path, decoding={"beam": 3})
    with pytest.raises(ConfigError, match="Did you mean 'language_dtype'"):
        load_generator(tmp_path, language_type="bfloat16")
    assert load_generator(tmp_path, decoding={"beams": 2}).decoding.beams == 2


def test_the_template_twin_keeps_the_protocol(features, tmp_path):
    save_template(TemplateGenerator("from {reference} to {target}"), tmp_path)
    twin = load_generator(tmp_path, seed=1)
    made = twin.generate([*PAIRS, Pair("lost", "a", "nowhere")], features)
    assert [(row.text, row.reverse_text) for row in made[:2]] == [
        ("from a to b", "from b to a"),
        ("from c to d", "from d to c"),
    ]
    assert made[2].text is None and "nowhere" in made[2].error
    assert twin.digest != load_generator(tmp_path, seed=2).digest and twin.prompt_version == "template/1"
