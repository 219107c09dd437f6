"""What a language model's tokenizer puts before a text stands before the first words that a generator says to it.

Twins: InstructBLIP of transformers with the same random weights, and MTG written out on a plain LLaMA. Every parity has
a control without the start token, which must differ.
"""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from modes import generator_mode

from cirray.generators.caption_template import Rewriter
from cirray.generators.config import DecodingConfig
from cirray.generators.decoding import decode
from cirray.generators.store import generator_from
from cirray.generators.writer import TextWriter
from cirray.models.sources.blip2 import open_blip2
from cirray.models.text import encode_texts
from cirray.models.towers.hf_blip2 import load_vision_tower
from cirray.models.towers.language import LanguageModel, load_language_model
from cirray.types import Pair

small = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "fixtures" / "small_blip2.py")))
CLOSE, START, END = 5e-5, 2, 3


class Features:
    """Patches by row number, as the feature store gives them."""

    def __init__(self, patches):
        self._patches = patches

    def get(self, ids):
        return self._patches[[int(name) for name in ids]].numpy()

    def __contains__(self, name):
        return True


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """InstructBLIP's files on a LLaMA whose tokenizer starts a text with <s>, and on a T5 whose ends one with </s>."""
    root, models = tmp_path_factory.mktemp("i"), {"llama": small.instruct(), "t5": small.instruct_t5()}
    frames = {"llama": "<s> $A", "t5": "$A </s>"}
    return {name: (model, small.save_instruct(model, root / name, frames[name])) for name, model in models.items()}


@pytest.fixture
def make(places):
    """(transformers' model, pixels, patches, our generator) on one of the two."""

    def made(name="llama", **fields):
        model, folder = places[name]
        tower, images = load_vision_tower(folder), small.images()
        config = generator_mode("paper", **fields)
        generator = generator_from(open_blip2(folder), config, load_language_model(folder), small.PATCH_WIDTH).eval()
        pixels = ((images.float() - tower.mean_C) / tower.std_C).permute(0, 3, 1, 2)
        return model, pixels, tower(images), generator

    return made


def answers_of(generator):
    return generator.encode_answers(["paint the red circle blue", "remove it", "move it to top left"])


def loss_of(generator, patches):
    found = generator(patches, patches, answers_of(generator))
    return float(found.total / found.tokens)


def instructblip(model, pixels, generator, head):
    """InstructBLIP's loss behind its image slots and `head`; an encoder reads all that and a decoder answers."""
    answers, slots = answers_of(generator), [model.config.image_token_index] * small.QUERIES
    question = encode_texts(generator.reader, [generator.instruction], generator.config.instruction_length)
    before, said = torch.tensor([[*slots, *head]] * 3), answers.ids_BT.masked_fill(~answers.mask_BT, -100)
    given = {
        "pixel_values": pixels, "qformer_input_ids": question.ids_BT.expand(3, -1),
        "qformer_attention_mask": question.mask_BT.expand(3, -1),
    }  # fmt: skip
    if generator.language.encodes:
        return float(model(**given, input_ids=before, labels=said).loss)
    seen = torch.cat([torch.ones_like(before), answers.mask_BT.long()], dim=1)
    labels = torch.cat([torch.full_like(before, -100), said], dim=1)
    ids = torch.cat([before, answers.ids_BT], dim=1)
    return float(model(**given, input_ids=ids, attention_mask=seen, labels=labels).loss)


@torch.inference_mode()
def test_the_answer_loss_is_instructblips_with_the_start_token_before_the_instruction(make):
    model, pixels, patches, generator = make(passes=("difference",))
    words = generator.language.token_ids(generator.instruction)
    ours = loss_of(generator, patches)
    assert abs(ours - instructblip(model, pixels, generator, [START, *words])) < CLOSE
    assert abs(ours - instructblip(model, pixels, generator, words)) > 20 * CLOSE


@torch.inference_mode()
def test_an_encoder_decoder_whose_tokenizer_starts_nothing_gets_no_start(make):
    model, pixels, patches, generator = make("t5", passes=("difference",))
    words = generator.language.token_ids(generator.instruction)
    ours = loss_of(generator, patches)
    assert abs(ours - instructblip(model, pixels, generator, [*words, END])) < CLOSE
    assert abs(ours - instructblip(model, pixels, generator, [START, *words, END])) > 20 * CLOSE


def mtg(generator, patches, start):
    """The released MTG on a plain LLaMA: q_r, q_t, q_c, then `start`, instruction, answer; its mean loss."""
    answers, lm = answers_of(generator), generator.lm
    soft = torch.cat([generator.read_image(patches)] * 2 + [generator.read_pair(patches, patches)], dim=1)
    words = torch.tensor([[*start, *generator.language.token_ids(generator.instruction)]] * 3)
    ids = torch.cat([words, answers.ids_BT], dim=1)
    inputs = torch.cat([soft, lm.get_input_embeddings()(ids)], dim=1)
    ignored = torch.full((3, soft.shape[1] + words.shape[1]), -100)
    labels = torch.cat([ignored, answers.ids_BT.masked_fill(~answers.mask_BT, -100)], dim=1)
    return float(lm(inputs_embeds=inputs, labels=labels).loss)


@torch.inference_mode()
def test_the_answer_loss_of_three_passes_is_the_released_generators(make):
    _, _, patches, generator = make()
    ours = loss_of(generator, patches)
    assert abs(ours - mtg(generator, patches, [START])) < CLOSE
    assert abs(ours - mtg(generator, patches, [])) > 20 * CLOSE


@torch.inference_mode()
def test_decoding_and_writing_continue_behind_the_start_token(make):
    _, _, patches, generator = make()
    soft = torch.cat([generator.read_image(patches), generator.read_image(patches.flip(0))], dim=1)
    soft = torch.cat([soft, generator.read_pair(patches, patches.flip(0))], dim=1)
    config = DecodingConfig(max_new_tokens=6, keep_unfinished=True)

    def continued(start):
        ids = torch.tensor([[*start, *generator.language.token_ids(generator.instruction)]] * 3)
        inputs = torch.cat([soft, generator.lm.get_input_embeddings()(ids)], dim=1)
        made = generator.lm.generate(
            inputs_embeds=inputs, attention_mask=torch.ones(inputs.shape[:2], dtype=torch.int64), do_sample=False,
            max_new_tokens=6, min_new_tokens=1, eos_token_id=END, pad_token_id=0,
        )  # fmt: skip
        return [row[: row.index(END)] if END in row else row for row in made.tolist()]

    ours = decode(generator.lm, generator.pair_prefix(patches, patches.flip(0)), config, END)
    assert [row.ids for row in ours] == continued([START]) != continued([])
    pairs = [Pair(f"p{at}", str(at), str(2 - at)) for at in range(3)]
    written = TextWriter(generator, config, directions=("forward",)).generate(pairs, Features(patches))
    wanted = [generator.language.tokenizer.decode(row.ids, skip_special_tokens=True).strip() for row in ours]
    assert [row.text or row.error for row in written] == [text or "forward text is empty" for text in wanted]


@torch.inference_mode()
@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({}, 9),
        ({"opening": "delta/1", "separators": ("first", "second", "")}, 0),
        ({"separators": ("first", "", "")}, 0),
    ],
)
def test_there_is_one_start_token_before_the_first_words(make, fields, place):
    _, _, patches, generator = make(**fields)
    start = generator.lm.get_input_embeddings()(torch.tensor(START))
    prefix = generator.pair_prefix(patches, patches)
    found = (prefix == start).all(dim=-1)
    assert found.sum(dim=1).tolist() == [1, 1, 1] and found[:, place].all()


@torch.inference_mode()
def test_alignment_and_captions_read_an_image_then_the_start_token(make):
    _, _, patches, generator = make()
    prefix = generator.image_prefix(generator.read_image(patches), "what")
    start = generator.lm.get_input_embeddings()(torch.tensor(START))
    assert prefix.shape[1] == small.QUERIES + 2 and (prefix[:, small.QUERIES] == start).all()


@torch.inference_mode()
def test_a_long_instruction_is_cut_on_the_left_and_keeps_its_start_token(make):
    _, _, patches, generator = make(instruction_length=3)
    ids = [START, *generator.language.token_ids(generator.instruction)[-2:]]
    prefix = generator.pair_prefix(patches, patches)
    assert prefix.shape[1] == 9 + 3
    assert torch.equal(prefix[0, 9:], generator.lm.get_input_embeddings()(torch.tensor(ids)))


@pytest.mark.parametrize(
    ("frame", "start"), [("$A", []), ("<s> $A", [2]), ("</s> $A", [3]), ("$A </s>", []), ("<s> $A </s>", [2])]
)
def test_a_tokenizers_start_is_found_whatever_it_is(frame, start):
    assert LanguageModel(None, small.speaker(frame)).start_ids == start


def test_a_rewriter_reads_its_prompt_as_the_tokenizer_frames_it(places, monkeypatch):
    rewriter, seen = Rewriter(places["llama"][1], new_tokens=1), []
    real = rewriter._model.generate
    monkeypatch.setattr(rewriter._model, "generate", lambda **given: seen.append(given["input_ids"]) or real(**given))
    rewriter("paint it", 0)
    assert seen[0][0, 0] == START and (seen[0] == START).sum() == 1
