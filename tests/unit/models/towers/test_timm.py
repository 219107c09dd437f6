"""Image encoders of timm as towers: parity in preparation and tokens, what identifies them, what is refused."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf

from cirray.core.errors import ArtifactError
from cirray.models.outlines import outline_tower, weightless
from cirray.models.towers.backbones import backbone_name
from cirray.models.towers.hf_blip2 import load_vision_tower
from cirray.transforms import build_transform

small = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[3] / "fixtures" / "small_encoders.py")))
CLOSE = 1e-5
_VIT = {"embed_dim": 16, "depth": 2, "num_heads": 2}
MODELS = {
    "classifier": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, **_VIT}),
    "registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 28, **_VIT}),
    "pooled by attention": ("vit_base_patch16_siglip_224", {"img_size": 32, "patch_size": 8, **_VIT}),
    "rotary": ("vit_small_patch16_dinov3", {"img_size": 256, **_VIT}),
    "batch norm": ("resnet10t", {"channels": (8, 8, 8, 8)}),
    "map": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 16)}),
    "map of the other order": ("swin_tiny_patch4_window7_224",
                               {"img_size": 56, "embed_dim": 8, "depths": (1, 1), "num_heads": (2, 2)}),
}  # fmt: skip


def make(name, seed=0):
    torch.manual_seed(seed)
    model = timm.create_model(MODELS[name][0], **MODELS[name][1])
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


def save(name, folder):
    save_for_hf(make(name), str(folder), safe_serialization=True)
    return folder


def expected(name, output):
    if output.ndim == 4:
        return output.flatten(2).transpose(1, 2) if name in ("map", "batch norm") else output.flatten(1, 2)
    registers = 4 if name in ("registers", "rotary") else 0
    return torch.cat([output[:, :1], output[:, 1 + registers :]], dim=1) if registers else output


def count(tower):
    return sum(weight.numel() for weight in tower.parameters())


def rewrite(path, change):
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


@torch.inference_mode()
@pytest.mark.parametrize("name", MODELS)
def test_a_picture_is_prepared_and_read_as_by_timm(name, tmp_path):
    model, tower = make(name), load_vision_tower(save(name, tmp_path))
    picture = small.picture()
    stored = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    theirs = create_transform(**resolve_data_config({}, pretrained_cfg=stored), is_training=False)(picture)[None]
    tokens = expected(name, model.forward_features(theirs))
    pixels = torch.tensor(build_transform(tower.transform)(picture))[None]
    ours = tower(pixels)
    assert ours.shape == tokens.shape == (1, tower.num_tokens, tower.width) and tower.width == model.num_features
    assert float((ours - tokens).abs().max() / tokens.abs().max()) < CLOSE
    other = tower.with_transform(tower.transform.model_copy(update={"resample": "nearest"}))
    turned = other(torch.tensor(build_transform(other.transform)(picture))[None])
    assert float((turned - tokens).abs().max() / tokens.abs().max()) > 100 * CLOSE


@pytest.mark.parametrize("name", MODELS)
def test_a_tower_comes_back_and_its_outline_has_its_sizes(name, tmp_path):
    tower = load_vision_tower(save(name, tmp_path / "source"))
    tower.save(tmp_path / "saved")
    again = load_vision_tower(tmp_path / "saved")
    images = torch.randint(256, (2, tower.image_size, tower.image_size, 3), dtype=torch.uint8)
    assert torch.equal(again(images), tower(images)) and again.digest == tower.digest
    assert again.transform == tower.transform
    with weightless():
        outline = outline_tower(str(tmp_path / "source"))
        outline(torch.zeros(1, outline.image_size, outline.image_size, 3, dtype=torch.uint8))
    assert (outline.num_tokens, outline.width, outline.image_size) == (tower.num_tokens, tower.width, tower.image_size)
    assert count(outline) == count(tower)


def test_what_is_behind_the_tokens_is_neither_kept_nor_part_of_the_digest(tmp_path):
    folder = save("classifier", tmp_path)
    tensors, before = load_file(str(folder / "model.safetensors")), load_vision_tower(folder)
    assert "head.weight" in tensors and not any(name.startswith("head") for name in before.model.state_dict())
    save_file({**tensors, "head.weight": tensors["head.weight"] + 1}, str(folder / "model.safetensors"))
    assert load_vision_tower(folder).digest == before.digest
    save_file({**tensors, "norm.weight": tensors["norm.weight"] + 1}, str(folder / "model.safetensors"))
    assert load_vision_tower(folder).digest != before.digest


def test_a_digest_does_not_ask_for_what_timm_writes_of_itself(tmp_path):
    folder = save("classifier", tmp_path)
    before, path = load_vision_tower(folder).digest, folder / "config.json"
    rewrite(path, lambda tree: tree.update(label_names=["a"], later_field=16))
    rewrite(path, lambda tree: tree["pretrained_cfg"].update(license="other", later_field=16))
    rewrite(path, lambda tree: tree["model_args"].update(num_classes=7, later_switch=None))
    assert load_vision_tower(folder).digest == before
    rewrite(path, lambda tree: tree["model_args"].pop("img_size"))  # `pretrained_cfg` says it as well
    assert load_vision_tower(folder).digest == before
    rewrite(path, lambda tree: tree["pretrained_cfg"].update(crop_pct=0.8))
    assert load_vision_tower(folder).digest != before


def test_weights_of_transformers_wrapper_and_old_files_are_read_too(tmp_path):
    folder = save("classifier", tmp_path)
    before, tensors = load_vision_tower(folder).digest, load_file(str(folder / "model.safetensors"))
    wrapped = {f"timm_model.{name}": value for name, value in tensors.items()}
    save_file(wrapped, str(folder / "model.safetensors"))
    rewrite(folder / "config.json", lambda tree: tree.update(model_type="timm_wrapper"))
    assert backbone_name(folder) == "timm" and load_vision_tower(folder).digest == before
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    assert load_vision_tower(folder).digest == before
    assert load_vision_tower(folder, torch.bfloat16).model.norm.weight.dtype == torch.bfloat16


def test_what_timm_does_not_know_and_what_does_not_fit_is_refused(tmp_path):
    folder = save("classifier", tmp_path)
    path, tensors = folder / "config.json", load_file(str(folder / "model.safetensors"))
    stored = path.read_text()
    kept = {name: value for name, value in tensors.items() if name != "norm.bias"}
    save_file(kept, str(folder / "model.safetensors"))
    with pytest.raises(ArtifactError, match="do not fit its architecture: missing norm.bias; left over none"):
        load_vision_tower(folder)
    rewrite(path, lambda tree: tree.update(architecture="vit_tiny_patch16_225"))
    with pytest.raises(ArtifactError, match="Unknown architecture of the installed timm .* Did you mean 'vit_tiny"):
        load_vision_tower(folder)
    for name, value in (("later_switch", True), ("checkpoint_path", "/no/such.pth"), ("pretrained", True)):
        path.write_text(stored)
        rewrite(path, lambda tree, given={name: value}: tree["model_args"].update(given))
        with pytest.raises(ArtifactError, match=f"timm cannot build the 'vit_tiny_patch16_224' of .*{name}"):
            load_vision_tower(folder)
    path.write_text(stored)
    save_file(tensors, str(folder / "model.safetensors"))
    rewrite(path, lambda tree: tree["pretrained_cfg"].update(crop_mode="border"))
    with pytest.raises(ArtifactError, match="prepared in an unknown way .timm: .* grey levels"):
        load_vision_tower(folder)


def test_published_models_of_timm_have_their_published_sizes():
    with weightless():
        tower = outline_tower("timm/vit_base_patch14_dinov2.lvd142m")
    assert (tower.num_tokens, tower.width, tower.image_size) == (1 + 37 * 37, 768, 518)
    assert count(tower) / 1e6 == pytest.approx(86.6, abs=0.1)
