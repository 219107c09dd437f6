import pytest
import torch

from cirray.core.errors import ArtifactError, DataError
from cirray.models.towers.config import LanguageModelConfig
from cirray.models.towers.language import (
    bag_ids,
    build_language_model,
    build_word_tokenizer,
    embed_bags,
    load_language_model,
)

TEXTS = ["make the red star blue", "add a cross"]


@pytest.fixture
def language():
    torch.manual_seed(0)
    config = LanguageModelConfig(width=16, layers=1, heads=2, intermediate=16, positions=32)
    return build_language_model(config, build_word_tokenizer(TEXTS))


def test_the_tokenizer_is_word_level_and_independent_of_order():
    tokenizer, turned = build_word_tokenizer(TEXTS), build_word_tokenizer(TEXTS[::-1])
    assert tokenizer.get_vocab() == turned.get_vocab()
    ids = tokenizer("Make the RED star blue")["input_ids"]
    assert len(ids) == 5 and tokenizer.decode(ids) == "make the red star blue"
    assert tokenizer("make a fish")["input_ids"][-1] == tokenizer.unk_token_id


def test_a_model_comes_back_with_tokenizer_and_logits(language, tmp_path):
    language.save(tmp_path)
    again = load_language_model(tmp_path)
    ids = torch.tensor([language.token_ids("add a red cross")])
    assert again.vocabulary_hash == language.vocabulary_hash and again.source == str(tmp_path)
    assert torch.allclose(again.model(ids).logits, language.model.eval()(ids).logits)
    assert again.end_id == language.end_id == 3 and again.pad_id == 0


def test_half_precision_files_are_loaded_for_the_cpu(language, tmp_path):
    language.model.half()
    language.save(tmp_path)
    assert load_language_model(tmp_path).model.dtype == torch.float32
    assert load_language_model(tmp_path, dtype=None).model.dtype == torch.float16


def test_a_bag_is_the_sum_of_its_words_in_any_order(language):
    ids = bag_ids(language, [("red", "star"), ("star", "red"), ("red",)], 3)
    vectors = embed_bags(language, ids)
    words = language.embed(torch.tensor([language.token_ids("red star")]))[0]
    assert torch.allclose(vectors[0], words.sum(0)) and torch.allclose(vectors[0], vectors[1])
    assert torch.equal(vectors[2], words[0])


def test_bags_with_unknown_words_or_too_many_are_refused(language):
    with pytest.raises(DataError, match="fish"):
        bag_ids(language, [("red", "fish")], 3)
    with pytest.raises(DataError, match="more than 1 tokens"):
        bag_ids(language, [("red", "star")], 1)


def test_other_words_have_another_hash(language):
    other = build_language_model(LanguageModelConfig(width=16, layers=1, heads=2), build_word_tokenizer(["add a fish"]))
    assert other.vocabulary_hash != language.vocabulary_hash


def test_texts_without_words_and_unreadable_sources_are_refused(tmp_path):
    with pytest.raises(DataError, match="hold no word"):
        build_word_tokenizer(["  "])
    with pytest.raises(ArtifactError, match="No language model"):
        load_language_model(tmp_path)
