"""Rewriters: the join, and any local language model with an instruction."""

import pytest
import torch

from cirray.core.config import validate
from cirray.core.errors import ArtifactError, ConfigError
from cirray.generators import prompts as prompt_tables
from cirray.generators.rewriters.base import Ask, RewriterSetup, rewrite_key
from cirray.generators.rewriters.config import REWRITERS, LanguageConfig, RewriterConfig
from cirray.generators.rewriters.language import answer, turns
from cirray.models.towers.config import LanguageModelConfig
from cirray.models.towers.language import build_language_model, build_word_tokenizer, load_language_model

TEMPLATE = "caption : {caption} request : {modification} new caption :"
ASKS = [
    Ask("a red circle", "make it blue"), Ask("a small square at the top and a star", "remove the star"),
    Ask("star", "add a circle"),
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm") / "model"
    words = " ".join([TEMPLATE.replace("{", " ").replace("}", " "), *(f"{a.caption} {a.modification}" for a in ASKS)])
    sizes = {"width": 16, "intermediate": 32, "layers": 2, "heads": 2, "positions": 64, "initializer_range": 0.6}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        build_language_model(LanguageModelConfig(**sizes), build_word_tokenizer([words])).save(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def prompts(monkeypatch):
    """Two short instructions beside the package's own."""
    own, usual = {"own/1": TEMPLATE, "own/2": f"{TEMPLATE} !"}, prompt_tables._read
    monkeypatch.setattr(prompt_tables, "_read", lambda *table: {**usual(*table), **own})


def made(source, batch=32, **fields):
    settings = LanguageConfig(**{"source": source, "prompt": "own/1", "new_tokens": 6, **fields})
    return REWRITERS.get("language")(settings, RewriterSetup(batch=batch))


def test_rewriters_are_found_by_name():
    assert REWRITERS.names() == ["join", "language", "lmm"]
    with pytest.raises(ConfigError, match="Unknown rewriter 'langage'. Did you mean 'language'"):
        REWRITERS.get("langage")


def test_the_join_says_caption_and_modification_and_needs_nothing():
    assert REWRITERS.get("join")(RewriterConfig(), RewriterSetup()).rewrite(ASKS[:1]) == ["a red circle, make it blue"]


def test_an_instruction_has_a_hash_of_its_words_and_places_for_both_texts():
    versions = set()
    for version in ("plain/1", "circo/1", "cirr/1", "fashioniq/1"):
        settings = LanguageConfig(source="x", prompt=version)
        template, name = settings.template, settings.prompt_version
        assert template.format(caption="CAP", modification="MOD").count("CAP") == 1 and "MOD" in template.format(
            caption="", modification="MOD"
        )
        assert name.startswith(f"{version}#") and len(name) == len(version) + 9
        versions.add(name.partition("#")[2])
    assert len(versions) == 4 and RewriterConfig().prompt_version == ""
    with pytest.raises(ConfigError, match="Unknown rewrite prompt 'circo/2'"):
        validate(LanguageConfig, {"source": "x", "prompt": "circo/2"})


def test_a_language_models_batched_answers_are_greedy_decoding_one_by_one(model):
    language = load_language_model(model)
    wanted = []
    for ask in ASKS:
        ids = language.token_ids(TEMPLATE.format(caption=ask.caption, modification=ask.modification))
        start = len(ids)
        while len(ids) < start + 6:
            ids.append(int(language.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == language.end_id:
                break
        wanted.append(answer(language.tokenizer.decode(ids[start:], skip_special_tokens=True)))
    assert made(model, batch=3).rewrite(ASKS) == made(model, batch=1).rewrite(ASKS) == wanted
    assert len(set(wanted)) > 1 and all(wanted)


def test_the_digest_covers_weights_instruction_and_length_and_loads_nothing(model, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "cirray.generators.rewriters.language.load_language_model",
        lambda *given: pytest.fail("the model was loaded"),
    )
    digests = {
        made(model).digest, made(model, new_tokens=7).digest, made(model, prompt="own/2").digest,
        made(model, language_dtype="bfloat16").digest,
    }  # fmt: skip
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    assert len(digests | {made(str(tmp_path / "other")).digest}) == 5 and made(model, batch=1).digest in digests
    first, second = (rewrite_key(ask, "p/1", "d") for ask in ASKS[:2])
    assert len({first, second, rewrite_key(ASKS[0], "p/2", "d"), rewrite_key(ASKS[0], "p/1", "e")}) == 4


def test_an_answer_is_its_first_line_without_label_and_quotation_marks():
    assert answer('\n  New caption: "a blue  circle"\nCaption: another') == "a blue circle"
    assert answer("Description: two dogs") == "two dogs" and answer(" \n ") == ""
    assert answer("captioned photos of dogs") == "captioned photos of dogs"


def test_a_conversation_model_gets_the_instruction_in_its_own_frame(model):
    plain, framed, off = made(model), made(model), made(model, chat="off")
    for rewriter in (framed, off):
        rewriter._language.tokenizer.chat_template = (
            "{% for message in messages %}request : {{ message['content'] }} {% endfor %}"
            "{% if add_generation_prompt %}caption :{% endif %}"
        )
    words = framed._language.tokenizer.decode(framed._ids(ASKS[0]))
    assert words == f"request : {plain._language.tokenizer.decode(plain._ids(ASKS[0]))} caption :"
    assert off._ids(ASKS[0]) == plain._ids(ASKS[0])
    with pytest.raises(ConfigError, match="no chat template"):
        made(model, chat="turns").rewrite(ASKS)


@pytest.mark.parametrize("version", ["circo/1", "cirr/1", "fashioniq/1", "plain/1"])
def test_the_examples_of_an_instruction_are_turns_of_a_conversation(version):
    config = validate(LanguageConfig, {"source": "x", "prompt": version})
    said = turns(config.template.format(caption="CAP", modification="MOD"))
    assert [turn["role"] for turn in said] == ["user", "assistant"] * 2 + ["user"]
    assert said[0]["content"].startswith(config.template[:30]) and said[0]["content"].count("Caption: ") == 1
    assert said[-1]["content"] == "Caption: CAP\nRequest: MOD"
    assert all(turn["content"] and "New caption:" not in turn["content"] for turn in said)


def test_what_is_missing_is_named(tmp_path):
    for name in ("source", "prompt"):
        with pytest.raises(ConfigError, match=name):
            validate(LanguageConfig, {key: "plain/1" for key in ("source", "prompt") if key != name})
    with pytest.raises(ArtifactError, match="No language model could be read"):
        made(str(tmp_path)).rewrite(ASKS)
