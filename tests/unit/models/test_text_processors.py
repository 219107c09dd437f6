"""What an encoder does to texts before its tokenizer, wherever it reads one."""

import random
import runpy
from pathlib import Path

import pytest
import torch

from cirray.core.config import validate
from cirray.core.errors import ConfigError
from cirray.models.base import RETRIEVERS
from cirray.models.config import RetrieverConfig
from cirray.models.forked import fork
from cirray.models.retriever_files import load_retriever
from cirray.models.text_processors import process
from cirray.training.zeroshot.token_search import read_phrase

CLIP = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "small_clip.py"))
PUBLIC = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "public_annotations.py"))
LOUD, QUIET = 'Paint the RED circle: "blue"!', "paint the red circle blue"
MARKS = ["paint the red circle blue", "and , ? ! : \" . '"]


def twin(text):
    """The published rule once more, by characters and words instead of patterns."""
    text = "".join(" " if char in '.!"()*#:;~' else char for char in text.lower())
    kept = ""
    for at, char in enumerate(text):
        run = char.isspace() and (text[at - 1 : at].isspace() or text[at + 1 : at + 2].isspace())
        if not run:
            kept += char
        elif not (at and text[at - 1].isspace()):
            kept += " "
    while kept.endswith("\n"):
        kept = kept[:-1]
    return " ".join(kept.strip(" ").split(" ")[:50])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Paint It RED", "paint it red"),
        ("a.b!c\"d(e)f*g#h:i;j~k", "a b c d e f g h i j k"),
        ("what's this, a dog? yes/no - 50% & more", "what's this, a dog? yes/no - 50% & more"),
        ("[same] {dog} <img> it`s_fine", "[same] {dog} <img> it`s_fine"),
        ("  two   dogs.  ", "two dogs"),
        ("tab\tstays, two\t\tdo not", "tab\tstays, two do not"),
        ("one line\nanother", "one line\nanother"),
        ("ends with a line\n", "ends with a line"),
        ("ends with lines\n\n", "ends with lines"),
        ("ends. \n", "ends"),
        ("no\u00a0break", "no\u00a0break"),
        ("Ärmel LÄNGER, ΣΑΣ 更大 \U0001f44d", "ärmel länger, σας 更大 \U0001f44d"),
        ("\u201cCurly\u201d \u2026 quotes \u2014 stay", "\u201ccurly\u201d \u2026 quotes \u2014 stay"),
        ('..."!!!(#*;:~)', ""),
        ("", ""),
        (" ", ""),
        ("\n", ""),
        (" ".join(f"w{n}" for n in range(50)), " ".join(f"w{n}" for n in range(50))),
        (" ".join(f"W{n}." for n in range(60)), " ".join(f"w{n}" for n in range(50))),
    ],
)  # fmt: skip
def test_captions_are_read_as_lavis_reads_them(text, wanted):
    assert [*process("blip_caption", [text])] == [wanted] == [twin(text)]
    assert [*process("none", [text])] == [text]


def test_any_text_comes_out_as_the_rule_says():
    draw, letters = random.Random(0), "aB.!\"()*#:;~,?'-\t\n \u00a0\u3000é  "
    for _ in range(3000):
        text = "".join(draw.choice(letters) for _ in range(draw.randrange(160)))
        assert [*process("blip_caption", [text])] == [twin(text)]


@pytest.mark.parametrize(
    ("name", "count", "changed"),
    [("val", 4181, 2569), ("test1", 4148, 2407), ("dress", 2017, 13), ("shirt", 2038, 7), ("toptee", 1961, 4)],
)
def test_a_known_share_of_the_benchmarks_texts_changes_beyond_case_and_blanks(name, count, changed):
    if name in ("val", "test1"):
        texts = [row["caption"] for row in PUBLIC["load"](f"cirr/captions/cap.rc2.{name}.json")]
    else:
        pairs = [row["captions"] for row in PUBLIC["load"](f"fashioniq/captions/cap.{name}.val.json")]
        texts = [f"{one.strip('.?, ').capitalize()} and {two.strip('.?, ')}" for one, two in pairs]
    made = [*process("blip_caption", texts)]
    assert len(texts) == count
    assert sum(new.split() != old.lower().split() for new, old in zip(made, texts, strict=True)) == changed


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return CLIP["save_hf"](CLIP["hf_model"](), tmp_path_factory.mktemp("clip"))


@pytest.fixture
def build(clip_folder):
    """An encoder of a kind, by what stands in its configuration for a text processor."""
    text = {"width": 16, "layers": 1, "heads": 2, "intermediate": 16}
    settings = {
        "qformer": {"qformer": {"width": 16, "layers": 1, "heads": 2, "queries": 3, "intermediate": 32}},
        "dual": {"embed_dim": 12, "text": text},
        "word_map": {"source": clip_folder, "injection": {"layers": 0}, "text_length": 20},
    }

    def made(kind, processor):
        if kind == "forked":
            return fork(made("qformer", processor))
        config = RETRIEVERS.settings(kind)(**{**settings[kind], "text_processor": processor})
        return RETRIEVERS.get(kind).build(config, MARKS, 12, 0).eval()

    return made


KINDS_OF_ENCODERS = ["qformer", "dual", "word_map", "forked"]


@pytest.mark.parametrize("kind", KINDS_OF_ENCODERS)
def test_every_kind_of_encoder_reads_through_the_processor_it_names(build, kind):
    processed, plain = build(kind, "blip_caption"), build(kind, "none")
    loud, quiet = processed.tokenize([LOUD]).ids_BT, processed.tokenize([QUIET]).ids_BT
    assert torch.equal(loud, quiet)
    assert plain.tokenize([LOUD]).ids_BT.shape != plain.tokenize([QUIET]).ids_BT.shape


@pytest.mark.parametrize("kind", KINDS_OF_ENCODERS)
def test_the_processor_stands_in_the_checkpoint_and_in_the_digest(build, kind, tmp_path):
    processed = build(kind, "blip_caption")
    processed.save(tmp_path / "model")
    again = load_retriever(tmp_path / "model")
    assert again.text_processor == "blip_caption" and again.digest == processed.digest != build(kind, "none").digest
    assert torch.equal(again.tokenize([LOUD]).ids_BT, processed.tokenize([QUIET]).ids_BT)


def test_an_index_of_images_stays_valid_when_a_dual_encoder_reads_texts_otherwise(build):
    both = [build("dual", name).target_digest for name in ("blip_caption", "none")]
    assert both[0] == both[1]


def test_captions_and_phrases_of_a_mapping_are_read_through_it_too(build):
    reader, plain = build("word_map", "blip_caption"), build("word_map", "none")
    assert torch.equal(*(reader.read_captions([text]) for text in (LOUD, QUIET)))
    assert not torch.equal(*(plain.read_captions([text]) for text in (LOUD, QUIET)))
    tokens = torch.ones(2, 1, 16)
    assert torch.equal(*(read_phrase(reader, f"{text} $", tokens) for text in (LOUD, QUIET)))
    assert not torch.equal(*(read_phrase(plain, f"{text} $", tokens) for text in (LOUD, QUIET)))


def test_a_text_of_marks_alone_is_a_text_of_no_words(build):
    reader = build("qformer", "blip_caption")
    assert torch.equal(reader.tokenize(["...!"]).ids_BT, reader.tokenize([""]).ids_BT)
    prompt = build("word_map", "blip_caption")
    assert torch.equal(prompt.tokenize(["...!"]).ids_BT, prompt.writer.plain(1).ids_BT)


def test_words_of_a_new_tokenizer_are_those_the_encoder_reads(build):
    assert '"' in build("qformer", "none").vocabulary()
    assert not {'"', "!", ":"} & set(build("qformer", "blip_caption").vocabulary())


def test_an_unknown_processor_is_named_before_anything_is_built():
    with pytest.raises(ConfigError, match="'blip_captions'.*Did you mean 'blip_caption'.*Known: blip_caption, none"):
        validate(RetrieverConfig, {"text_processor": "blip_captions"})
