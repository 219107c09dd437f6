"""The frozen vision tower: transformers' BLIP-2 vision model, called on uint8 pixels."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, Blip2VisionConfig, Blip2VisionModel

from cirray.core.contents import canonical
from cirray.core.errors import ArtifactError, DataError
from cirray.data.config import TransformConfig
from cirray.models.config import VisionTowerConfig
from cirray.models.quiet import forget_old_names, quiet
from cirray.models.sources.files import READ_ERRORS, unreadable
from cirray.models.sources.hub import at_home
from cirray.models.sources.kinds import model_type
from cirray.models.sources.pretrained import pretrained, pretrained_model
from cirray.models.towers.backbones import BACKBONES, Backbone, backbone_of, no_tower
from cirray.models.towers.preprocessors import PREPROCESSOR, check_size, read_transform, write_preprocessor

NAME = "hf_blip2"
_FILES = f"config.json, model.safetensors (or its shards) and {PREPROCESSOR}"
_POSITION_STD = 0.7
_TOWER = "blip_2_vision_model"
_FULL_MODELS = ("blip-2", "instructblip", "instructblipvideo")


class VisionTower(nn.Module):
    """Frozen patch encoder. It always runs in eval mode and never receives gradients unless `trainable()` is called.

    Attributes:
        model: the `Blip2VisionModel` (other backbones' towers are subclasses around their own).
        transform: how an image becomes the pixels this tower reads (the data layer builds it).
        width: width of the tokens.
        num_tokens: tokens per image, the class token included.
        image_size: side of the images in pixels.
    """

    def __init__(self, model: Any, transform: TransformConfig) -> None:
        """Wrap and freeze a model."""
        super().__init__()
        self.model, self.transform = model, transform
        self.width, self.num_tokens, self.image_size = self._sizes()
        self.mean_C: torch.Tensor
        self.std_C: torch.Tensor
        self.register_buffer("mean_C", torch.tensor(transform.mean) * 255.0, persistent=False)
        self.register_buffer("std_C", torch.tensor(transform.std) * 255.0, persistent=False)
        self.requires_grad_(False)
        self.eval()

    def forward(self, images_BHWC: torch.Tensor) -> torch.Tensor:
        """Patch tokens of images.

        Args:
            images_BHWC: uint8 pixels of the transform's size; normalised here, on the device.

        Returns: patches_BPD: last hidden states after the final LayerNorm, class token first.
        """
        check_pixels(images_BHWC, self.image_size)
        pixels_BCHW = ((images_BHWC.float() - self.mean_C) / self.std_C).permute(0, 3, 1, 2)
        return self._tokens(pixels_BCHW)

    def with_transform(self, transform: TransformConfig) -> "VisionTower":
        """The same tower with another transform of the same size."""
        return type(self)(self.model, transform)

    def trainable(self) -> "VisionTower":
        """Unfreeze, only for the tower's own pretraining."""
        self.requires_grad_(True)
        return self

    @cached_property
    def digest(self) -> str:
        """32 hex digits over configuration, transform and weights."""
        total = hashlib.blake2b(digest_size=16)
        total.update(canonical(self._description()).encode())
        total.update(canonical(self.transform.identity()).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            total.update(name.encode())
            total.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
        return total.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write `config.json`, `model.safetensors` and the preprocessor file."""
        with quiet():
            self.model.save_pretrained(str(folder))
        write_preprocessor(folder, self.transform)

    def _sizes(self) -> tuple[int, int, int]:
        """Width of the tokens, tokens per image, side of the images."""
        settings = self.model.config
        return int(settings.hidden_size), int(self.model.embeddings.num_positions), _side(settings)

    def _tokens(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        return self.model(pixels_BCHW.to(self.model.dtype)).last_hidden_state

    def _description(self) -> dict[str, Any]:
        """The settings that decide the tokens beside weights and transform; transformers' list changes."""
        return _architecture(self.model.config)


def build_vision_tower(config: VisionTowerConfig, transform: TransformConfig) -> VisionTower:
    """A tower with random weights from the global torch generator.

    Place embeddings start with a standard deviation of 0.7: with small ones, tokens lack their place for most of a
    short pretraining.

    Args:
        config: sizes.
        transform: its `size` must be the tower's image size.

    Raises ArtifactError when transform and tower disagree on the size.
    """
    if transform.size != config.image_size:
        raise ArtifactError(
            f"The transform makes {transform.size} px images, the tower reads {config.image_size} px. "
            "Set vision.image_size and transform.size to one value."
        )
    settings = Blip2VisionConfig(
        hidden_size=config.width, intermediate_size=config.intermediate, num_hidden_layers=config.layers,
        num_attention_heads=config.heads, image_size=config.image_size, patch_size=config.patch_size,
        initializer_range=config.initializer_range,
    )  # fmt: skip
    model = Blip2VisionModel._from_config(settings, attn_implementation=config.attention)
    nn.init.normal_(model.embeddings.position_embedding, std=_POSITION_STD)
    return VisionTower(model, transform)


def load_vision_tower(source: str | Path, dtype: torch.dtype | None = torch.float32) -> VisionTower:
    """Load a frozen tower of any backbone (`cirray.models.towers.backbones`), or of a folder written by `save`; without
    a type the stored one is kept.

    Raises ArtifactError when nothing readable is there, it belongs to no backbone, or its images have another size than
    its position table.
    """
    backbone = backbone_of(source)
    if backbone is None:
        raise no_tower(source)
    return backbone.load_tower(at_home(source), dtype)


def load_blip2_tower(source: str, dtype: torch.dtype | None) -> VisionTower:
    """Vision tower of a folder or hub id of a `Blip2VisionModel`, or of a whole BLIP-2 or InstructBLIP checkpoint.

    Of a whole checkpoint only the vision part is read, without the affine part of the last LayerNorm
    (`cirray.models.sources.blip2`).

    Raises ArtifactError when nothing readable is there, or its images have another size than its position table.
    """
    try:
        part = _part(source)
        model, report = pretrained_model(Blip2VisionModel, source, dtype=dtype or "auto", **part)
    except READ_ERRORS as error:
        raise unreadable("vision tower", source, error, _FILES) from None
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ArtifactError(
            f"{source!r} lacks {len(missing)} tensors of its vision tower, e.g. {missing[0]!r}. Give a folder with "
            "config.json and all weights of a BLIP-2 vision model or of a whole BLIP-2 or InstructBLIP checkpoint."
        )
    if part:
        forget_old_names(model)
        nn.init.ones_(model.post_layernorm.weight)
        nn.init.zeros_(model.post_layernorm.bias)
    transform = read_transform(source, _side(model.config))
    check_size(source, transform, _side(model.config), model.config.patch_size)
    return VisionTower(model, transform)


def fits(source: str) -> bool:
    """Whether a folder's or hub repository's config is BLIP-2's, InstructBLIP's, or that of their vision tower."""
    return model_type(source) in (_TOWER, *_FULL_MODELS)


def check_pixels(images_BHWC: torch.Tensor, size: int) -> None:
    """Refuse images of another size than the position table's; transformers would cut the table silently.

    Raises DataError naming both sizes.
    """
    if tuple(images_BHWC.shape[1:3]) != (size, size):
        height, width = images_BHWC.shape[1:3]
        raise DataError(
            f"The images are {height} x {width} px, the tower's position table is for {size} x {size} px. Prepare them "
            "with the tower's own transform."
        )


def _part(source: str) -> dict[str, Any]:
    """Arguments that read the vision part (`vision_model.*`) of a whole checkpoint; none for a tower alone."""
    settings = pretrained(AutoConfig, source)
    if settings.model_type == _TOWER:
        return {}
    vision = settings.vision_config.to_dict()
    names = {
        name: value for name, value in vision.items() if name in Blip2VisionConfig().to_dict() and name != "model_type"
    }
    return {"config": Blip2VisionConfig(**names), "key_mapping": {r"^vision_model\.": ""}}


def _architecture(settings: Blip2VisionConfig) -> dict[str, Any]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
    return {name: getattr(settings, name) for name in (*names, "hidden_act", "layer_norm_eps", "qkv_bias")}


def _side(settings: Blip2VisionConfig) -> int:
    side = settings.image_size
    return side if isinstance(side, int) else side[0]


BACKBONES.register(NAME)(Backbone(fits, load_blip2_tower, title="BLIP-2 or InstructBLIP"))
