"""LLaMA's tokenizer from `tokenizer.model` alone, against SentencePiece itself, wherever a tokenizer is read."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import sentencepiece
import torch
from sentencepiece import sentencepiece_model_pb2 as protocol
from tokenizers import Tokenizer, normalizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from cirray.core.errors import ArtifactError
from cirray.generators.captioners.base import CaptionerSetup
from cirray.generators.captioners.config import HfConfig
from cirray.generators.captioners.hf import HfCaptioner
from cirray.generators.rewriters.base import Ask, RewriterSetup
from cirray.generators.rewriters.config import LanguageConfig
from cirray.generators.rewriters.language import LanguageRewriter
from cirray.models.sources.tokenizers import read_tokenizer
from cirray.models.text import load_tokenizer
from cirray.models.towers.language import load_language_model

FIXTURES = Path(__file__).parents[3] / "fixtures"
small = SimpleNamespace(**runpy.run_path(str(FIXTURES / "small_pieces.py")))
blip2 = SimpleNamespace(**runpy.run_path(str(FIXTURES / "small_blip2.py")))

TEXTS = (
    "paint the red circle blue", "  two leading blanks", "two trailing  ", "two  inside", "a\nline\n\nand a\ttab",
    "\u00e9mile \U0001f642 zebra", "", " ", "   ", "12345 and 3.14", "quick\u2013brown\u2019s", "\nx",
    "[PAD] <0x0A> \u2581x",
)  # fmt: skip


def written_twice(tokenizer, folder):
    """As an artifact keeps it: saved beside a model's configuration, read again."""
    tokenizer.save_pretrained(str(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return read_tokenizer(folder)


@pytest.mark.parametrize(
    ("settings", "family"),
    [
        (small.PUBLISHED, "llama"), ({**small.PUBLISHED, "legacy": True}, "llama"),
        ({**small.PUBLISHED, "legacy": False}, "llama"), (None, "llama"), (None, "mistral"), (None, None),
        ({"bos_token": "", "eos_token": "", "unk_token": "", "tokenizer_class": "LLaMATokenizer"}, "llama"),
        ({**small.PUBLISHED, "tokenizer_class": "LlamaTokenizerFast"}, None),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, "llama"),
    ],
)  # fmt: skip
def test_ids_are_sentencepieces_own_behind_the_start_token(tmp_path, settings, family):
    model = small.trained()
    tokenizer, own = read_tokenizer(small.save(tmp_path / "f", model, settings, family)), small.spelled(model)
    again = written_twice(tokenizer, tmp_path / "again")
    for text in TEXTS:
        ids = own.encode(text)
        assert tokenizer(text)["input_ids"] == again(text)["input_ids"] == [own.bos_id(), *ids], text
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids, text
        assert again.decode(ids) == own.decode(ids)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    assert tokenizer.padding_side == again.padding_side == (settings or {}).get("padding_side", "left")


def test_transformers_own_reader_spells_such_a_folder_otherwise(tmp_path):
    """Negative control: no start token without a named class, and a blank too few where a text begins with some."""
    model = small.trained()
    own = small.spelled(model)
    bare = AutoTokenizer.from_pretrained(small.save(tmp_path / "bare", model, None))
    assert bare("paint it")["input_ids"] == own.encode("paint it")
    named = AutoTokenizer.from_pretrained(small.save(tmp_path / "named", model))
    assert named("  two leading blanks")["input_ids"] != [1, *own.encode("  two leading blanks")]


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "unigram"}, {"model_type": "unigram", "byte_fallback": False},
        {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True, "byte_fallback": False},
        {"add_dummy_prefix": False}, {"control_symbols": "[INST],[/INST]"},
    ],
)  # fmt: skip
def test_other_makes_of_the_file_are_spelled_as_sentencepiece_spells_them(tmp_path, options):
    model = small.trained(**options)
    tokenizer, own = read_tokenizer(small.save(tmp_path / "f", model)), small.spelled(model)
    for text in TEXTS[:-1]:
        assert tokenizer(text)["input_ids"] == [1, *own.encode(text)], text


def by_stretches(model, text, legacy):
    """A text with special tokens: SentencePiece for every stretch; without `legacy` the first alone has the blank."""
    with_blank, tree = small.spelled(model), protocol.ModelProto.FromString(model)
    tree.normalizer_spec.add_dummy_prefix = False
    without = sentencepiece.SentencePieceProcessor(model_proto=tree.SerializeToString())
    ids = []
    for at, part in enumerate(text.replace("</s>", "\0</s>\0").split("\0")):
        ids += [2] if part == "</s>" else (with_blank if legacy or at == 0 else without).encode(part)
    return ids


@pytest.mark.parametrize("text", ["paint </s> it", "</s>paint", "</s> paint", "paint</s>it</s>", "</s>", " </s> a"])
def test_legacy_says_whether_a_blank_stands_after_a_special_token_inside_a_text(tmp_path, text):
    model = small.trained()
    for legacy in (True, False):
        tokenizer = read_tokenizer(small.save(tmp_path / str(legacy), model, {**small.PUBLISHED, "legacy": legacy}))
        assert tokenizer(text)["input_ids"] == [1, *by_stretches(model, text, legacy)], legacy
    assert by_stretches(model, "a</s>it", True) != by_stretches(model, "a</s>it", False)


def test_start_and_end_token_are_the_settings_choice(tmp_path):
    model = small.trained()
    ids = small.spelled(model).encode("paint it")
    for begin, end in ((True, True), (False, True), (False, False)):
        settings = {**small.PUBLISHED, "add_bos_token": begin, "add_eos_token": end}
        tokenizer = read_tokenizer(small.save(tmp_path / f"{begin}{end}", model, settings))
        assert tokenizer("paint it")["input_ids"] == [1] * begin + ids + [2] * end
    pair = read_tokenizer(small.save(tmp_path / "pair", model))("paint it", "paint it")["input_ids"]
    assert pair == [1, *ids, 1, *ids]


def test_added_tokens_keep_their_ids_or_are_refused(tmp_path):
    model = small.trained()
    count = small.spelled(model).get_piece_size()
    folder = small.save(tmp_path / "f", model, {**small.PUBLISHED, "pad_token": "[PAD]"})
    (folder / "added_tokens.json").write_text(json.dumps({"[PAD]": count}))
    tokenizer = read_tokenizer(folder)
    assert tokenizer.pad_token_id == count and tokenizer("[PAD]")["input_ids"] == [1, count]
    (folder / "added_tokens.json").write_text(json.dumps({"[PAD]": count + 7}))
    with pytest.raises(ArtifactError, match=rf"'\[PAD\]' as id {count + 7}, but the file has {count} tokens"):
        read_tokenizer(folder)


def test_a_conversations_template_comes_along(tmp_path):
    folder = small.save(tmp_path / "f", small.trained())
    (folder / "chat_template.jinja").write_text("{% for m in messages %}USER: {{ m['content'] }}{% endfor %}")
    asked = [{"role": "user", "content": "hello"}]
    assert read_tokenizer(folder).apply_chat_template(asked, tokenize=False) == "USER: hello"


BROKEN = {
    "a page": b"<!DOCTYPE html><html>Not found</html>", "nothing": b"", "zeros": bytes(64),
    "a pointer": b"version https://git-lfs\noid 1\n", "half": small.trained()[:2000], "tiktoken": b"IQ== 0\nIg== 1\n",
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model"])
def test_a_broken_file_is_named_with_what_is_in_it(tmp_path, kind, name):
    family = "llama" if name == "tokenizer.model" else "t5"
    folder = small.save(tmp_path / "f", BROKEN[kind], None, family, name)
    for read in (read_tokenizer, load_tokenizer):
        with pytest.raises(
            ArtifactError, match=rf"{name}' is no whole SentencePiece model: it has .* Fetch the file"
        ) as e:
            read(folder)
        assert "tiktoken" not in str(e.value) and "\n" not in str(e.value)


def test_a_tokenizer_json_is_read_before_the_sentencepiece_file(tmp_path):
    whole = blip2.speaker()
    whole.save_pretrained(str(tmp_path))
    (tmp_path / "tokenizer.model").write_bytes(b"broken")
    assert read_tokenizer(tmp_path).get_vocab() == whole.get_vocab()


def test_a_tokenizer_json_of_llamas_is_read_as_it_is(tmp_path):
    """The published ones put the blank in front by their normaliser, which transformers' class for LLaMA forgets."""
    model = small.trained()
    folder = small.save(tmp_path / "f", model)
    backend = Tokenizer.from_str(read_tokenizer(folder).backend_tokenizer.to_str())
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.save(str(folder / "tokenizer.json"))
    whole, own = read_tokenizer(folder), small.spelled(model)
    for text in TEXTS:
        assert whole(text)["input_ids"] == [1, *own.encode(text)], text
    assert whole.padding_side == "right" and whole.eos_token_id == 2


def test_t5s_file_is_still_transformers_own_to_read(tmp_path):
    model = small.trained(model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1, byte_fallback=False)
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
    tokenizer = read_tokenizer(small.save(tmp_path / "f", model, settings, "t5", "spiece.model"))
    assert tokenizer("paint the red circle")["input_ids"] == [*small.spelled(model).encode("paint the red circle"), 1]


def llama_folder(folder, **settings):
    """A language model as `lmsys/vicuna-7b` has it: weights, config, `tokenizer.model`, `tokenizer_config.json`."""
    model = small.trained()
    size = small.spelled(model).get_piece_size()
    config = LlamaConfig(
        vocab_size=size, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(str(folder))
    return small.save(folder, model, {**small.PUBLISHED, **settings}, None), small.spelled(model)


def test_a_language_model_with_tokenizer_model_alone_loads_and_keeps_its_words(tmp_path):
    folder, own = llama_folder(tmp_path / "vicuna")
    language = load_language_model(folder)
    assert language.token_ids("paint the red circle") == own.encode("paint the red circle")
    assert (language.end_id, language.pad_id) == (2, 2)
    language.save(tmp_path / "again")
    again = load_language_model(tmp_path / "again")
    assert again.vocabulary_hash == language.vocabulary_hash
    assert again.tokenizer("paint it")["input_ids"] == [1, *own.encode("paint it")]


def test_a_rewriter_asks_such_a_model_with_sentencepieces_ids(tmp_path, monkeypatch):
    folder, own = llama_folder(tmp_path / "vicuna")
    monkeypatch.setattr(LanguageConfig, "template", "{caption} and {modification}")
    rewriter = LanguageRewriter(LanguageConfig(source=str(folder), prompt="plain/1", new_tokens=2), RewriterSetup())
    ask = Ask(caption="paint it", modification="the dog")
    assert rewriter._ids(ask) == [1, *own.encode("paint it and the dog")]
    assert len(rewriter.rewrite([ask])) == 1


def test_an_instructblip_folder_brings_its_language_model_and_describes_images(tmp_path):
    """Vicuna's words at the top, with the image token added behind them; BERT's in a folder of their own."""
    from transformers import BlipImageProcessor, InstructBlipForConditionalGeneration, InstructBlipProcessor

    pieces = small.trained()
    size, folder = small.spelled(pieces).get_piece_size(), tmp_path / "instruct"
    config = blip2.instruct().config
    config.text_config.vocab_size, config.image_token_index = size + 1, size
    config.text_config.bos_token_id, config.text_config.eos_token_id = 1, 2
    blip2.scatter(InstructBlipForConditionalGeneration(config)).save_pretrained(str(folder))
    pictures = BlipImageProcessor(size={"height": blip2.SIZE, "width": blip2.SIZE})
    InstructBlipProcessor(pictures, blip2.speaker(), blip2.reader(), num_query_tokens=3).save_pretrained(str(folder))
    (folder / "tokenizer.json").unlink()
    small.save(folder, pieces, small.PUBLISHED, None)
    (folder / "added_tokens.json").write_text(json.dumps({"<image>": size}))
    language = load_language_model(folder)
    assert language.token_ids("paint the dog") == small.spelled(pieces).encode("paint the dog")
    captioner = HfCaptioner(HfConfig(source=str(folder), words=4), CaptionerSetup())
    words = captioner._processor.tokenizer
    assert words("describe the image")["input_ids"] == [1, *small.spelled(pieces).encode("describe the image")]
    assert words.convert_tokens_to_ids("<image>") == size
    (folder / "tokenizer.model").write_bytes(b"<html>")
    with pytest.raises(ArtifactError, match="is no whole SentencePiece model"):
        HfCaptioner(HfConfig(source=str(folder), words=4), CaptionerSetup())
