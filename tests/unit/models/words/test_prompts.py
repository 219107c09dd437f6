import pytest
import torch

from cirray.core.errors import ConfigError, DataError
from cirray.models.words.prompts import Alphabet, PromptWriter, cut_prompt

WORDS = {}


def spell(text):
    return [WORDS.setdefault(word, 10 + len(WORDS)) for word in text.split()]


ALPHABET = Alphabet(spell, begin=1, end=2, pad=0, limit=16)
PLAIN, QUERY = "a photo of $", "a photo of $ that {text}"


def writer(tokens=1, length=16, prompt=PLAIN, query=QUERY, alphabet=ALPHABET):
    return PromptWriter(alphabet, prompt, query, tokens, length)


def test_a_prompt_has_exactly_one_slot_and_its_text():
    assert cut_prompt(QUERY, True) == ("a photo of", "$", "that", "{text}")
    with pytest.raises(ConfigError, match="'a photo of it' has 0 slots; write exactly one"):
        cut_prompt("a photo of it", False)
    with pytest.raises(ConfigError, match="has 2 slots"):
        cut_prompt("$ and $ {text}", True)
    with pytest.raises(ConfigError, match="has 0 places for a text"):
        cut_prompt("a photo of $", True)
    with pytest.raises(ConfigError, match="it is the image's alone"):
        cut_prompt(QUERY, False)


def test_the_slot_is_a_place_and_no_word_above_the_end_token():
    batch = writer()(["is blue"])
    assert batch.slot_BT.nonzero().tolist() == [[0, 4]]
    assert batch.ids_BT[0, 4] == ALPHABET.begin and batch.ids_BT[0, -1] == ALPHABET.end
    assert batch.ids_BT[0].tolist() == [1, *spell("a photo of"), 1, *spell("that is blue"), 2]


def test_a_long_text_is_trimmed_and_slot_and_end_stay():
    batch = writer(length=9)(["one two three four five six", "one"])
    assert batch.ids_BT.shape == (2, 9) and batch.slot_BT[:, 4].all() and batch.slot_BT.sum() == 2
    assert batch.ids_BT[0].tolist() == [1, *spell("a photo of"), 1, *spell("that one two"), 2]
    assert batch.ids_BT[1, 7] == ALPHABET.end and batch.mask_BT[1].tolist() == [1] * 8 + [0]


def test_slots_in_a_users_text_are_taken_out():
    assert torch.equal(writer()(["$ is $blue"]).ids_BT, writer()(["is blue"]).ids_BT)


def test_an_empty_text_is_the_images_own_prompt():
    batch = writer()(["", "  ", "$"])
    assert torch.equal(batch.ids_BT, writer().plain(3).ids_BT)
    assert batch.ids_BT[0].tolist() == [1, *spell("a photo of"), 1, 2]
    with pytest.raises(DataError, match="no text"):
        writer()([])


def test_several_tokens_stand_side_by_side_and_count_against_the_limit():
    batch = writer(tokens=3, length=10)(["one two three four"])
    assert batch.slot_BT[0].nonzero()[:, 0].tolist() == [4, 5, 6] and batch.ids_BT.shape[1] == 10
    assert batch.ids_BT[0, 8:].tolist() == [*spell("one"), 2]
    with pytest.raises(ConfigError, match="with 9 image token.s. takes more than the 12 tokens"):
        writer(tokens=9, length=12)


def test_a_text_before_the_slot_moves_the_slot():
    batch = writer(query="{text} like $")(["one two", "one"])
    assert batch.slot_BT.nonzero().tolist() == [[0, 4], [1, 3]]


def test_rows_of_a_fixed_length_are_filled_up():
    fixed = Alphabet(spell, 1, 2, 0, 16, fill=True)
    assert writer(alphabet=fixed)(["one"]).ids_BT.shape == (1, 16)
