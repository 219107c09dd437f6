"""Image encoders of transformers as towers: what is read, what identifies them, what is refused."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from cirray.core.errors import ArtifactError
from cirray.models.outlines import outline_tower, weightless
from cirray.models.towers.auto import AutoTower, load_auto_tower
from cirray.models.towers.backbones import BACKBONES, Backbone
from cirray.models.towers.hf_blip2 import load_vision_tower

small = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[3] / "fixtures" / "small_encoders.py")))
pipeline = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[3] / "fixtures" / "tiny_pipeline.py")))


def load(folder, dtype=torch.float32):
    return load_auto_tower(str(folder), dtype)


def images(tower, count=2):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(256, (count, tower.image_size, tower.image_size, 3), dtype=torch.uint8, generator=generator)


def rewrite(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("name", small.ENCODERS)
def test_a_tower_comes_back_with_its_tokens_its_transform_and_its_digest(name, tmp_path):
    tower = load_vision_tower(small.save(name, tmp_path / "source"))
    tower.save(tmp_path / "saved")
    again = load_vision_tower(tmp_path / "saved")
    assert type(tower) is type(again) is AutoTower and torch.equal(again(images(tower)), tower(images(tower)))
    assert again.transform == tower.transform and again.digest == tower.digest
    assert not tower.training and not any(weight.requires_grad for weight in tower.parameters())


def test_only_the_image_side_of_a_dual_encoder_and_no_pooling_is_kept(tmp_path):
    tower = load(small.save("siglip", tmp_path / "source"))
    names = set(tower.model.state_dict())
    assert names and not any(name.startswith(("text_model", "vision_model", "head")) for name in names)
    tower.save(tmp_path / "saved")
    assert set(load_file(str(tmp_path / "saved" / "model.safetensors"))) == names


def test_what_a_classifier_lacks_of_pooling_is_neither_missed_nor_part_of_the_digest(tmp_path):
    folder = Path(small.save("vit", tmp_path))  # a classifier: its encoder was saved without a pooling layer
    assert "vit.pooler.dense.weight" not in load_file(str(folder / "model.safetensors"))
    torch.manual_seed(1)
    first = load(folder).digest
    torch.manual_seed(2)
    assert load(folder).digest == first


def test_16_bits_are_kept_when_asked_for(tmp_path):
    tower = load(small.save("dinov2", tmp_path), torch.bfloat16)
    assert tower(images(tower)).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["dinov2", "dinov3", "siglip", "siglip2", "vit"])
def test_a_digest_outlives_an_upgrade_of_transformers_and_moves_with_settings(name, tmp_path, monkeypatch):
    folder = Path(small.save(name, tmp_path))
    before, plain = load(folder).digest, transformers.PreTrainedConfig.to_dict
    monkeypatch.setattr("transformers.configuration_utils.__version__", "99.1.0")
    more = {"new_switch": False, "new_mode": "auto"}
    monkeypatch.setattr(transformers.PreTrainedConfig, "to_dict", lambda self: plain(self) | more)
    assert load(folder).digest == before
    monkeypatch.undo()
    settings = json.loads((folder / "config.json").read_text())
    part = settings.get("vision_config", settings)
    part |= {"layer_norm_eps": 0.5}
    (folder / "config.json").write_text(json.dumps(settings))
    assert load(folder).digest != before
    part |= {"layer_norm_eps": 1e-6 if name.startswith(("dinov2", "siglip")) else 1e-12, "hidden_act": "relu"}
    (folder / "config.json").write_text(json.dumps(settings))
    assert load(folder).digest != before


def test_a_digest_moves_with_the_preparation_of_images(tmp_path):
    folder = Path(small.save("vit", tmp_path))
    before = load(folder).digest
    rewrite(folder / "preprocessor_config.json", resample=3)
    assert load(folder).digest != before


def test_missing_tensors_and_processors_and_odd_preparations_are_refused(tmp_path):
    folder = Path(small.save("dinov2", tmp_path))
    tensors = load_file(str(folder / "model.safetensors"))
    kept = {name: value for name, value in tensors.items() if "layer.1." not in name}
    save_file(kept, str(folder / "model.safetensors"), metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match="lacks .* tensors of its vision tower, e.g. 'encoder.layer.1"):
        load(folder)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    for fields, words in (
        ({"do_pad": True, "pad_size": {"height": 64, "width": 64}}, "3 x 64 x 64 numbers"),
        ({"crop_size": {"height": 32, "width": 24}}, "32 x 24 px, which are not square"),
        ({"rescale_factor": 1 / 127.5}, "of 255 grey levels"),
        ({"size": {"longest_edge": 32}}, "longest_edge"),
    ):
        processor = small.make("dinov2")[1]
        processor.save_pretrained(str(folder))
        rewrite(folder / "preprocessor_config.json", **fields)
        with pytest.raises(ArtifactError, match=f"prepared in an unknown way.*{words}"):
            load(folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ArtifactError, match="does not say how its images are prepared.*preprocessor_config.json"):
        load(folder)


def test_images_of_a_size_that_the_encoder_does_not_read_are_refused(tmp_path):
    folder = Path(small.save("vit", tmp_path))
    rewrite(folder / "preprocessor_config.json", size={"height": 48, "width": 48})
    with pytest.raises(ArtifactError, match="ViTModel gives no tokens for images of 48 px .*doesn't match"):
        load(folder)


@pytest.mark.parametrize("name", small.ENCODERS)
def test_an_outline_has_the_sizes_and_leaves_nothing_behind(name, tmp_path):
    folder = small.save(name, tmp_path)
    with weightless():
        outline = outline_tower(folder)
        outline(torch.zeros(1, outline.image_size, outline.image_size, 3, dtype=torch.uint8))
    real = load(folder)
    assert (outline.num_tokens, outline.width, outline.image_size) == (real.num_tokens, real.width, real.image_size)
    assert sum(weight.numel() for weight in outline.parameters()) == sum(weight.numel() for weight in real.parameters())
    assert torch.isfinite(real(images(real))).all()  # DINOv3 keeps places of patches between calls


def test_a_plug_in_brings_a_tower_of_its_own_and_is_asked_before_the_general_one(tmp_path):
    folder = small.save("vit", tmp_path / "vit")
    made = pipeline.write_tower(tmp_path / "blip2")
    toy = Backbone(lambda source: "vit" in source, lambda source, dtype: load_vision_tower(made), title="a toy")
    BACKBONES.register("toy")(toy)
    try:
        assert load_vision_tower(folder).width == 8
        with pytest.raises(ArtifactError, match="the folder has no config.json .*; or a toy"):
            load_vision_tower(tmp_path)
    finally:
        BACKBONES._items.pop("toy")
    assert load_vision_tower(folder).width == small.WIDTH
