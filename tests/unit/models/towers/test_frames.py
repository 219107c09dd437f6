"""The frame of a request is chosen from the tokenizer: chat, a line break, or nothing."""

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from cirray.core.errors import ConfigError
from cirray.models.towers.frames import frame_of
from cirray.models.towers.language import LanguageModel, build_word_tokenizer

TURNS = (
    "{% for m in messages %}<|s|>{{ m['role'] }}\n{{ m['content'] }}<|e|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|s|>assistant\n{% endif %}"
)


def by_bytes(template=None):
    """A byte-level tokenizer like GPT-2's and Qwen's, one token a byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(BPE({letter: number for number, letter in enumerate(letters)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|e|>")
    tokenizer.add_tokens(["<|s|>"], special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer


def test_a_byte_level_tokenizer_gets_a_line_break_between_request_and_answer():
    tokenizer = by_bytes()
    frame = frame_of(tokenizer, "auto", [])
    assert (frame.kind, tokenizer.decode(list(frame.tail)), frame.head) == ("line", "\n", ())


def test_words_that_stand_alone_by_themselves_need_nothing():
    tokenizer = build_word_tokenizer(["a b"])
    assert frame_of(tokenizer, "auto", [2]).kind == "plain"
    assert frame_of(tokenizer, "auto", [2]).start == (2,)


def test_an_encoder_reads_the_request_plain():
    assert frame_of(by_bytes(), "auto", [], encodes=True).kind == "plain"


def test_a_chat_model_reads_a_users_turn_and_answers_in_its_own():
    tokenizer = by_bytes(TURNS)
    frame = frame_of(tokenizer, "auto", [])
    told = frame.told(tokenizer)
    assert told["kind"] == "chat"
    assert told["head"] == "<|s|>user\n"
    assert told["tail"] == "<|e|>\n<|s|>assistant\n"


@pytest.mark.parametrize("template", [None, "{{ raise_exception('roles must alternate') }}", "nothing of yours"])
def test_a_tokenizer_without_a_usable_template_cannot_chat(template):
    with pytest.raises(ConfigError, match="line or plain"):
        frame_of(by_bytes(template), "chat", [])


def test_a_word_in_a_text_has_its_blank_where_the_tokenizer_wants_one():
    language = LanguageModel(None, by_bytes())
    assert language.tokenizer.decode(language.word_ids("red")) == " red"
    words = build_word_tokenizer(["red"])
    assert LanguageModel(None, words).word_ids("red") == [words.convert_tokens_to_ids("red")]
