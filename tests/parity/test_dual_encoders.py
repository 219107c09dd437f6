"""CLIP features: cirray's towers and text encoders against the libraries' own, same weights, fp32, with controls."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from cirray.models.config import DualEncoderConfig
from cirray.models.dual import build_dual
from cirray.models.towers.clip_tower import with_tokens
from cirray.models.towers.hf_blip2 import load_vision_tower

small = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "fixtures" / "small_clip.py")))
TEXTS = ["paint the red circle blue", "remove it", "move the small square"]
CLOSE = 2e-6


def apart(ours, theirs):
    """Largest difference, relative to the largest value (features of random weights are not of size one)."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def pixels_of(images):
    return ((images.float() / 255 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.3, 0.4])).permute(0, 3, 1, 2)


def dual(source, width, **fields):
    return build_dual(DualEncoderConfig(source=source, **fields), [], width).eval()


@torch.inference_mode()
@pytest.mark.parametrize("settings", ["VIT", "RESNET"])
def test_open_clip_image_and_text_features_are_those_of_open_clip(settings, tmp_path):
    import open_clip

    settings = getattr(small, settings)
    size = settings["vision_cfg"]["image_size"]
    model, images = small.open_model(settings), small.images(size=size)
    folder = small.save_open(model, tmp_path / "model", settings)
    tower = load_vision_tower(folder)
    theirs = model.encode_image(pixels_of(images))
    assert tower(images).shape == (3, 1, small.EMBED) and apart(tower(images)[:, 0], theirs) < CLOSE
    assert apart(tower(images.flip(0))[:, 0], theirs) > 100 * CLOSE
    words = open_clip.SimpleTokenizer(context_length=12)(TEXTS)
    text = dual(folder, small.EMBED)
    ours = text.text_encoder(text.tokenize(TEXTS))
    assert apart(ours, model.encode_text(words)) < CLOSE
    assert apart(ours, model.encode_text(words.flip(0))) > 100 * CLOSE


@torch.inference_mode()
def test_clip_image_and_text_features_are_those_of_transformers(tmp_path):
    model, images = small.hf_model(), small.images()
    folder = small.save_hf(model, tmp_path / "clip")
    tower, retriever = load_vision_tower(folder), dual(folder, small.EMBED)
    theirs = model.visual_projection(model.vision_model(pixel_values=pixels_of(images)).pooler_output)
    assert apart(tower(images)[:, 0], theirs) < CLOSE and apart(tower(images.flip(0))[:, 0], theirs) > 100 * CLOSE
    text = retriever.tokenize(TEXTS)
    pooled = model.text_model(input_ids=text.ids_BT, attention_mask=text.mask_BT).pooler_output
    assert apart(retriever.text_encoder(text), model.text_projection(pooled)) < CLOSE
    one = retriever.text_encoder(retriever.tokenize(TEXTS[1:2]))
    assert apart(one[0], model.text_projection(pooled)[1]) < CLOSE  # padding does not matter
    assert apart(one[0], model.text_projection(pooled)[0]) > 100 * CLOSE


@torch.inference_mode()
def test_all_tokens_begin_with_the_embedding_and_live_in_its_space(tmp_path):
    images = small.images()
    for folder in (
        small.save_hf(small.hf_model(), tmp_path / "a"),
        small.save_open(small.open_model(), tmp_path / "b"),
    ):
        tower = load_vision_tower(folder)
        every = with_tokens(tower, "all")
        assert every(images).shape == (3, 5, small.EMBED) == (3, every.num_tokens, every.width)
        assert apart(every(images)[:, 0], tower(images)[:, 0]) < CLOSE
        assert every.digest != tower.digest


@torch.inference_mode()
def test_the_sum_head_is_the_normalised_sum_and_the_combiner_its_equation(tmp_path):
    model, images = small.hf_model(), small.images()
    folder = small.save_hf(model, tmp_path / "clip")
    patches = load_vision_tower(folder)(images)
    summed, combined = (dual(folder, small.EMBED, fusion=name) for name in ("sum", "combiner"))
    text = summed.tokenize(TEXTS)
    image_BD, text_BD = patches[:, 0], summed.text_encoder(text)
    assert apart(summed.compose(patches, text), functional.normalize(image_BD + text_BD, dim=-1)) < CLOSE
    head = combined.head
    both = torch.cat([head.text_side(text_BD).relu(), head.image_side(image_BD).relu()], dim=-1)
    share = torch.sigmoid(head.gate(head.gate_hidden(both).relu()))
    mixed = head.mix(head.mix_hidden(both).relu())
    naive = functional.normalize(mixed + share * text_BD + (1 - share) * image_BD, dim=-1)
    assert apart(combined.compose(patches, text), naive) < CLOSE
    assert apart(combined.compose(patches, text), summed.compose(patches, text)) > 100 * CLOSE
