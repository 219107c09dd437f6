"""The generator on an encoder-decoder (Flan-T5): loss and decoding against transformers' own, same random weights."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from modes import generator_mode
from transformers import PreTrainedModel

from cirray.core.errors import ArtifactError
from cirray.generators.config import DecodingConfig
from cirray.generators.decoding import decode
from cirray.generators.store import generator_from, load_model, save_generator
from cirray.generators.trainable import Answers
from cirray.models.sources.blip2 import open_blip2
from cirray.models.text import encode_texts
from cirray.models.towers.hf_blip2 import load_vision_tower
from cirray.models.towers.language import load_language_model

small = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "fixtures" / "small_blip2.py")))
CLOSE = 1e-4


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """transformers' InstructBLIP on T5, our tower and our generator from its files."""
    model = small.instruct_t5()
    folder = small.save_instruct(model, tmp_path_factory.mktemp("t5"), max_shard_size="20KB")
    language = load_language_model(folder)
    generator = generator_from(open_blip2(folder), generator_mode("paper"), language, small.PATCH_WIDTH)
    return model, load_vision_tower(folder), generator.eval()


def answers_of(language):
    rows = [[5, 6, 7, language.end_id], [8, language.end_id], [9, 10, 11, language.end_id]]
    ids = torch.tensor([row + [language.pad_id] * (4 - len(row)) for row in rows])
    return Answers(ids, torch.tensor([[True] * len(row) + [False] * (4 - len(row)) for row in rows]))


@torch.inference_mode()
def test_the_answer_loss_is_that_of_instructblip_on_t5(spoken):
    model, tower, generator = spoken
    language, images = generator.language, small.images()
    assert language.encodes and isinstance(language.model, PreTrainedModel)
    question = encode_texts(generator.reader, [generator.instruction], 128)
    pixels = ((images.float() - tower.mean_C) / tower.std_C).permute(0, 3, 1, 2)
    head = [model.config.image_token_index] * small.QUERIES
    prompt = torch.tensor([[*head, *language.token_ids(generator.instruction), language.end_id]] * 3)
    answers = answers_of(language)
    theirs = model(
        pixel_values=pixels, qformer_input_ids=question.ids_BT.expand(3, -1), input_ids=prompt,
        labels=answers.ids_BT.masked_fill(~answers.mask_BT, -100),
    ).loss  # fmt: skip
    patches = tower(images)
    difference = generator.read_pair(patches, patches)
    alone = generator._framed([difference], generator.instruction)
    ours = generator.answer_loss(alone, answers)
    assert abs(float(ours.total / ours.tokens - theirs)) < CLOSE
    unended = generator.answer_loss(alone[:, :-1], answers)
    assert abs(float(unended.total / unended.tokens - theirs)) > 10 * CLOSE


@pytest.mark.parametrize("beams", [1, 3])
@torch.inference_mode()
def test_decoding_is_that_of_transformers_generate(spoken, beams):
    _, tower, generator = spoken
    patches = tower(small.images(4))
    prefix = generator.pair_prefix(patches, patches.flip(0))
    config = DecodingConfig(beams=beams, max_new_tokens=6, keep_unfinished=True)
    ours = [row.ids for row in decode(generator.lm, prefix, config, generator.language.end_id)]
    theirs = generator.lm.generate(
        inputs_embeds=prefix, num_beams=beams, do_sample=False, max_new_tokens=6, min_new_tokens=1,
        eos_token_id=generator.language.end_id, pad_token_id=0, length_penalty=1.0,
    )[:, 1:]  # fmt: skip
    for found, row in zip(ours, theirs.tolist(), strict=True):
        end = row.index(generator.language.end_id) if generator.language.end_id in row else len(row)
        assert found == row[:end]
    assert len({tuple(row) for row in ours}) > 1
    alone = decode(generator.lm, prefix[2:3], config, generator.language.end_id)[0]
    assert alone.ids == ours[2]  # rows do not depend on their neighbours, also when some have left the batch


def test_a_generator_on_t5_trains_its_projection_and_comes_back(spoken, tmp_path):
    _, tower, generator = spoken
    patches = tower(small.images())
    loss = generator(patches, patches.flip(0), answers_of(generator.language))
    (gradient,) = torch.autograd.grad(loss.total, generator.projection.weight)
    assert gradient.abs().max() > 0 and not any(weight.requires_grad for weight in generator.lm.parameters())
    save_generator(generator, tmp_path / "generator")
    again = load_model(tmp_path / "generator")
    with torch.inference_mode():
        other = again(patches, patches.flip(0), answers_of(again.language))
    assert abs(float(other.total) - float(loss.total.detach())) < CLOSE


def test_a_source_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="No language model could be read"):
        load_language_model(tmp_path)
