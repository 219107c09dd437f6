"""Texts from captions and templates: directions, fallback, versions, and the way through files."""

import json

import pytest

from cirray.core.errors import ArtifactError, ConfigError
from cirray.generators.caption_template import (
    EXAMPLES,
    CaptionTemplateGenerator,
    Rewriter,
    clip_tokens,
    pick_templates,
    save_caption_generator,
)
from cirray.generators.config import GENERATORS
from cirray.generators.store import load_generator
from cirray.types import Pair

CAPTIONS = {"a": "a red star", "b": "two dogs on grass", "c": " "}
PAIRS = [Pair(f"p{number}", "a", "b") for number in range(40)]


def rows(captions=CAPTIONS):
    return [{"image_id": image, "caption": text, "captioner": "x", "key": image} for image, text in captions.items()]


def generator(ids=("0", "1"), captions=None, **fields):
    version, templates = pick_templates(ids)
    return CaptionTemplateGenerator(captions or CAPTIONS, templates, version, **fields)


def test_a_text_tells_the_target_instead_of_the_reference_and_the_reverse_has_them_swapped():
    made = generator(("0",)).generate(PAIRS[:1], None)[0]
    assert made.text == "two dogs on grass instead of a red star"
    assert made.reverse_text == "a red star instead of two dogs on grass" and made.error is None
    assert generator(("1",)).generate(PAIRS[:1], None)[0].text == "unlike a red star, I want two dogs on grass"
    assert generator(("2",)).generate(PAIRS[:1], None)[0].text == "two dogs on grass"


def test_templates_are_drawn_by_seed_and_pair_and_both_occur():
    texts = [made.text for made in generator().generate(PAIRS, None)]
    assert len(set(texts)) == 2 and 5 < texts.count(texts[0]) < 35
    assert texts == [made.text for made in generator().generate(PAIRS, None)]
    assert texts[3:7] == [made.text for made in generator().generate(PAIRS[3:7], None)]
    assert texts != [made.text for made in generator(seed=1).generate(PAIRS, None)]


def test_a_text_of_more_than_77_clip_tokens_falls_back_to_the_targets_caption():
    short, long = "a dog", " ".join(["star"] * 70)
    text = f"{short} instead of {long}"
    assert clip_tokens(text) == 2 + 2 + 2 + 70 == 76
    made = generator(("0",), {"a": long, "b": short}).generate([Pair("p", "a", "b")], None)[0]
    assert made.text == text and made.reverse_text == f"{long} instead of {short}"
    longer = long + " star star"
    made = generator(("0",), {"a": longer, "b": short}).generate([Pair("p", "a", "b")], None)[0]
    assert clip_tokens(f"{short} instead of {longer}") == 78
    assert (made.text, made.reverse_text) == (short, longer)


def test_a_pair_with_an_image_without_caption_fails_as_a_value():
    made = generator().generate([Pair("p", "a", "c"), Pair("q", "ghost", "a"), PAIRS[0]], None)
    assert [item.error for item in made] == ["image 'c' has no caption", "image 'ghost' has no caption", None]
    assert made[0].text is None and [item.pair_id for item in made] == ["p", "q", "p0"]


def test_version_and_hash_of_the_templates_are_kept():
    version = generator().prompt_version
    assert version.startswith("caption_templates/1:0+1#") and version != generator(("0",)).prompt_version
    other = CaptionTemplateGenerator(
        CAPTIONS, {"0": "{target} not {reference}", "1": "{target}"}, "caption_templates/1"
    )
    assert other.prompt_version.split("#")[0] == version.split("#")[0] and other.prompt_version != version
    assert len({generator().digest, generator(seed=1).digest, generator(token_limit=20).digest, other.digest}) == 4


def test_a_saved_generator_writes_the_same_texts_whatever_the_order_of_the_captions(tmp_path):
    save_caption_generator(tmp_path / "one", rows(), ("0", "1"), 77, {"source": ""})
    save_caption_generator(tmp_path / "two", rows()[::-1], ("0", "1"), 77, {"source": ""})
    one, two = load_generator(tmp_path / "one"), load_generator(tmp_path / "two")
    assert one.generate(PAIRS, None) == generator().generate(PAIRS, None) == two.generate(PAIRS, None)
    assert one.digest == two.digest != load_generator(tmp_path / "one", seed=4).digest
    assert GENERATORS.names() == ["caption_template", "lmm", "mtg", "template"]


def test_unknown_templates_and_kinds_are_named(tmp_path):
    with pytest.raises(ConfigError, match="Unknown caption template '9'"):
        pick_templates(("0", "9"))
    (tmp_path / "config.json").write_text(json.dumps({"kind": "captoin_template"}))
    with pytest.raises(ArtifactError, match="Did you mean 'caption_template'"):
        load_generator(tmp_path)


def test_rewriting_is_a_pure_function_of_text_and_seed_and_off_without_a_source(language, tmp_path):
    language.save(tmp_path / "lm")
    rewriter = Rewriter(str(tmp_path / "lm"), top_k=3, new_tokens=4)
    drawn = {rewriter("make it red", seed) for seed in range(6)}
    assert rewriter("make it red", 2) == rewriter("make it red", 2) and len(drawn) > 1
    assert all(before in Rewriter.prompt("x") and after in Rewriter.prompt("x") for before, after in EXAMPLES)
    save_caption_generator(
        tmp_path / "g", rows(), ("0",), 77, {"source": str(tmp_path / "lm"), "top_k": 3, "new_tokens": 4}
    )
    plain = generator(("0",)).generate(PAIRS[:1], None)[0]
    assert load_generator(tmp_path / "g").generate(PAIRS[:1], None)[0].text != plain.text
