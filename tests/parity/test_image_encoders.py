"""Towers of image encoders against their libraries: the picture's preparation and the tokens, with controls."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
import transformers
from transformers import AutoImageProcessor

from cirray.core.errors import ArtifactError
from cirray.models.towers.auto import load_auto_tower
from cirray.models.towers.hf_blip2 import load_vision_tower
from cirray.models.towers.preprocessors import library_transform, read_transform, write_preprocessor
from cirray.transforms import build_transform

small = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "fixtures" / "small_encoders.py")))
CLOSE, LEVEL = 1e-5, 1 / 255
TOKENS = {"dinov2": 17, "dinov2 with registers": 17, "dinov3": 17, "siglip": 16, "siglip2": 16, "vit": 17, "swin": 16,
          "convnext": 4}  # fmt: skip
SQUARE = (64, 64)
"""SigLIP 2's own grid follows a picture's shape; a tower's is square, so they meet on square pictures."""


def apart(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())


def numbers(tower, picture):
    """Pixels and the normalised numbers that the encoder reads."""
    pixels_BHWC = torch.tensor(build_transform(tower.transform)(picture))[None]
    return pixels_BHWC, ((pixels_BHWC.float() - tower.mean_C) / tower.std_C).permute(0, 3, 1, 2)


def of(name):
    return small.picture(*SQUARE) if name == "siglip2" else small.picture()


def expected(name, hidden):
    """The tokens that a tower gives of a library's last hidden state."""
    if hidden.ndim == 4:
        return hidden.flatten(2).transpose(1, 2)
    registers = 4 if name in ("dinov2 with registers", "dinov3") else 0
    return torch.cat([hidden[:, :1], hidden[:, 1 + registers :]], dim=1) if registers else hidden


def plain(processor):
    """The library's own processor on Pillow, where it has one; its tensor version rounds in other places."""
    cls = getattr(transformers, f"{type(processor).__name__}Pil", None)
    return cls(**{name: value for name, value in processor.to_dict().items() if not name.endswith("_type")})


@torch.inference_mode()
@pytest.mark.parametrize("name", small.ENCODERS)
def test_a_picture_is_prepared_and_read_as_by_transformers(name, tmp_path):
    model, _ = small.make(name)
    tower = load_auto_tower(small.save(name, tmp_path), torch.float32)
    picture = of(name)
    pixels, ours = numbers(tower, picture)
    given = AutoImageProcessor.from_pretrained(str(tmp_path))(images=picture, return_tensors="pt")
    reads = small.image_side(model)
    theirs = expected(name, reads(**given).last_hidden_state)
    tokens = tower(pixels)
    assert tokens.shape == theirs.shape == (1, TOKENS[name], small.WIDTH) == (1, tower.num_tokens, tower.width)
    assert apart(tokens, theirs) < 0.05  # one grey level of rounding
    assert apart(tower(pixels.flip(2)), theirs) > 0.1
    if name != "siglip2":
        assert float(((ours - given["pixel_values"]) * tower.std_C[:, None, None] / 255).abs().max()) < 2 * LEVEL
        assert apart(tokens, expected(name, reads(pixel_values=ours).last_hidden_state)) < CLOSE


@torch.inference_mode()
@pytest.mark.parametrize("name", [name for name in small.ENCODERS if name != "dinov3"])
def test_a_picture_is_prepared_and_read_exactly_as_by_transformers_on_pillow(name, tmp_path):
    model, processor = small.make(name)
    tower = load_auto_tower(small.save(name, tmp_path), torch.float32)
    given = plain(processor)(images=of(name), return_tensors="pt")
    theirs = expected(name, small.image_side(model)(**given).last_hidden_state)
    assert apart(tower(numbers(tower, of(name))[0]), theirs) < CLOSE
    turned = tower.with_transform(tower.transform.model_copy(update={"resample": "nearest"}))
    assert apart(turned(numbers(turned, of(name))[0]), theirs) > 1e-3


def test_an_odd_margin_is_cut_as_transformers_cuts_it(tmp_path):
    tower = load_auto_tower(small.save("dinov2", tmp_path), torch.float32)
    picture = small.picture(39, 39)  # 7 px are left over: 3 before and 4 behind, or 4 and 3
    processor = plain(AutoImageProcessor.from_pretrained(str(tmp_path)))
    theirs = np.asarray(processor(images=picture, return_tensors="np")["pixel_values"][0])
    assert np.abs(numbers(tower, picture)[1][0].numpy() - theirs).max() < CLOSE
    other = tower.with_transform(tower.transform.model_copy(update={"odd_margin": "even"}))
    assert np.abs(numbers(other, picture)[1][0].numpy() - theirs).max() > 0.1


@pytest.mark.parametrize("kind", ["CLIPImageProcessor", "BlipImageProcessor", "SiglipImageProcessor"])
def test_what_other_towers_read_of_a_preprocessor_file_is_what_transformers_does(kind, tmp_path):
    square = {"height": 32, "width": 32}
    sizes = {"size": {"shortest_edge": 39}, "crop_size": square} if kind.startswith("CLIP") else {"size": square}
    processor = getattr(transformers, kind)(**sizes, resample=2)
    processor.save_pretrained(str(tmp_path / "theirs"))
    transform = read_transform(tmp_path / "theirs", 0)
    write_preprocessor(tmp_path / "ours", transform)
    assert read_transform(tmp_path / "ours", 0) == transform
    given = plain(processor)(images=small.picture(), return_tensors="np")["pixel_values"][0]
    pixels = build_transform(transform)(small.picture()) / 255
    ours = ((pixels - np.array(transform.mean)) / np.array(transform.std)).transpose(2, 0, 1)
    assert np.abs(ours - given).max() < CLOSE
    again = plain(AutoImageProcessor.from_pretrained(str(tmp_path / "ours")))  # what is saved is true for others too
    assert np.abs(ours - again(images=small.picture(), return_tensors="np")["pixel_values"][0]).max() < CLOSE
    wrong = build_transform(transform.model_copy(update={"resample": "bicubic"}))(small.picture()) / 255
    assert np.abs(wrong - pixels).max() > 0.01


@pytest.mark.parametrize(("resize_mode", "filtered"), [("shortest", "bicubic"), ("squash", "bilinear")])
def test_open_clip_prepares_pictures_as_open_clip(resize_mode, filtered, tmp_path):
    said = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "resize_mode": resize_mode, "interpolation": filtered}
    tower = load_vision_tower(open_clip_folder(tmp_path / "model", said))
    theirs = open_clip.image_transform(tower.image_size, is_train=False, **said)(small.picture(39, 23))
    assert float((numbers(tower, small.picture(39, 23))[1][0] - theirs).abs().max()) < CLOSE
    other = tower.with_transform(tower.transform.model_copy(update={"odd_margin": "down", "resample": "nearest"}))
    assert float((numbers(other, small.picture(39, 23))[1][0] - theirs).abs().max()) > 0.1


def test_an_open_clip_whose_pictures_are_padded_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="prepared in an unknown way .open_clip: .* grey levels"):
        load_vision_tower(open_clip_folder(tmp_path / "model", {"resize_mode": "longest"}))


def open_clip_folder(folder, said):
    clip = runpy.run_path(str(Path(__file__).parents[1] / "fixtures" / "small_clip.py"))
    place = Path(clip["save_open"](clip["open_model"](), folder))
    path = place / "open_clip_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"preprocess_cfg": said}))
    return place


PUBLISHED = {
    "DINOv2": ("BitImageProcessor", {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}),
    "DINOv2 at its table's size": (
        "BitImageProcessor", {"size": {"shortest_edge": 518}, "crop_size": {"height": 518, "width": 518}},
    ),
    "DINOv3": ("DINOv3ViTImageProcessor", {}),
    "SigLIP": ("SiglipImageProcessor", {"size": {"height": 384, "width": 384}}),
    "ViT": ("ViTImageProcessor", {}),
    "ConvNeXT": ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}}),
    "ConvNeXT, large": ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    "CLIP": ("CLIPImageProcessor", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_processors_of_the_published_sizes_are_followed(name, tmp_path):
    kind, fields = PUBLISHED[name]
    getattr(transformers, kind)(**fields).save_pretrained(str(tmp_path))
    transform = library_transform(str(tmp_path), 224)
    processor = AutoImageProcessor.from_pretrained(str(tmp_path))
    picture = small.picture(300, 451)
    theirs = processor(images=picture, return_tensors="np")["pixel_values"][0]
    pixels = build_transform(transform)(picture) / 255
    ours = ((pixels - np.array(transform.mean)) / np.array(transform.std)).transpose(2, 0, 1)
    levels = np.abs(ours - theirs) * np.array(transform.std)[:, None, None] * 255
    assert levels.mean() < 0.5 and levels.max() < 3
