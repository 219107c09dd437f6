"""Image encoders of transformers: DINOv2, DINOv3, SigLIP, SigLIP 2, ViT and whatever else `AutoModel` reads."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers import MODEL_MAPPING, AutoConfig
from transformers.models.auto import modeling_auto as tables

from cirray.core.errors import ArtifactError
from cirray.data.config import TransformConfig
from cirray.models.quiet import forget_old_names
from cirray.models.sources.files import READ_ERRORS, unreadable
from cirray.models.sources.kinds import DETECTORS, DUAL_ENCODERS, model_type
from cirray.models.sources.pretrained import pretrained, pretrained_model
from cirray.models.towers.backbones import BACKBONES, Backbone
from cirray.models.towers.image_encoder import ImageEncoderTower, NoPooling, read_as_tokens
from cirray.models.towers.preprocessors import PREPROCESSOR, library_transform, own_transform

NAME = "auto"
_FILES = f"config.json, model.safetensors (or its shards) and {PREPROCESSOR}"
_OTHERS = frozenset({
    "blip-2", "blip_2_vision_model", "clip", "clip_vision_model", "clip_text_model", "clipseg", "timm_wrapper",
    "timm_backbone", "imagegpt", "perceiver", "shieldgemma2",
})  # fmt: skip
"""Families of other backbones, and those that do not read pixels and give tokens."""
_ENCODERS = (
    {*tables.MODEL_FOR_IMAGE_MAPPING_NAMES, *tables.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES}
    | {name for name in tables.MODEL_MAPPING_NAMES if name.removesuffix("_vision_model") in DUAL_ENCODERS}
) - {*DETECTORS, *tables.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES, *_OTHERS}
_USUAL_SIDE, _DINOV2_TABLE = 224, 518
_NAFLEX = ("siglip2_vision_model",)
_DECIDING = (
    "hidden_size", "hidden_sizes", "embed_dim", "intermediate_size", "mlp_ratio", "num_hidden_layers", "depths",
    "num_attention_heads", "num_heads", "num_channels", "image_size", "patch_size", "num_patches", "window_size",
    "hidden_act", "layer_norm_eps", "layer_norm_epsilon", "qkv_bias", "query_bias", "key_bias", "value_bias",
    "proj_bias", "mlp_bias", "use_swiglu_ffn", "use_gated_mlp", "use_mask_token", "num_register_tokens", "rope_theta",
    "pos_embed_rescale", "apply_layernorm", "use_absolute_embeddings", "use_relative_position_bias",
    "use_shared_relative_position_bias", "use_mean_pooling", "num_stages", "layer_type", "embedding_size",
    "downsample_in_first_stage", "layer_scale_init_value",
)  # fmt: skip
"""The settings that decide the tokens and so identify a model; transformers' own list changes with each release."""


class AutoTower(ImageEncoderTower):
    """An image encoder of transformers, frozen."""

    def hidden(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """As the base; SigLIP 2's NaFlex models get the square image as a sequence of patches."""
        settings = self.model.config
        given = _patches(pixels_BCHW, settings.patch_size) if settings.model_type in _NAFLEX else {}
        output = self.model(**{"pixel_values": pixels_BCHW, **given}).last_hidden_state
        return read_as_tokens(output, _width(settings))

    @property
    def registers(self) -> slice:
        """Behind the class token."""
        return slice(1, 1 + int(getattr(self.model.config, "num_register_tokens", 0) or 0))

    def _sizes(self) -> tuple[int, int, int]:
        settings, side = self.model.config, self.transform.size
        if settings.model_type in _NAFLEX:  # looks at values, which a trace for `cirray plan` has not
            return int(settings.hidden_size), (side // int(settings.patch_size)) ** 2, side
        return super()._sizes()

    def _description(self) -> dict[str, Any]:
        settings = self.model.config
        found = {name: value for name in _DECIDING if (value := getattr(settings, name, None)) is not None}
        return {"architecture": settings.model_type, **found}


def load_auto_tower(source: str, dtype: torch.dtype | None) -> AutoTower:
    """Vision tower of a folder or hub id, or of a folder that `save` wrote; of a dual encoder its image side.

    Raises ArtifactError when nothing readable is there, tensors are missing, or its images are prepared in an unknown
    way or have a size that it does not read.
    """
    try:
        settings = pretrained(AutoConfig, source)
        part = image_part(settings)
        renamed = {"key_mapping": {r"^vision_model\.": ""}} if part is not settings else {}
        family = MODEL_MAPPING[type(part)]
        model, report = pretrained_model(family, source, dtype=dtype or "auto", config=part, **renamed)
    except READ_ERRORS as error:
        raise unreadable("vision tower", source, error, _FILES) from None
    _whole(source, report["missing_keys"])
    if renamed:
        forget_old_names(model)
    return AutoTower(without_pooling(model.eval()), _transform(source, part))


def outline_auto_tower(source: str) -> AutoTower:
    """A tower of a folder's sizes. Raises ArtifactError as `load_auto_tower`."""
    settings = pretrained(AutoConfig, source)
    prepared = (Path(source) / PREPROCESSOR).is_file()
    with unset_fake_temporarily():  # the comparison with the library's own preparation needs real numbers
        transform = _transform(source, image_part(settings)) if prepared else None
    return outline_encoder(settings, transform)


def outline_encoder(settings: Any, transform: TransformConfig | None = None) -> AutoTower:
    """A tower of a configuration's sizes, for images of the transform's size or of the usual one."""
    part = image_part(settings)
    family: Any = MODEL_MAPPING[type(part)]
    with unset_fake_temporarily(), torch.device("meta"):  # some compute numbers of their own when they are built
        model = family._from_config(part).eval()
    model = without_pooling(model).to_empty(device="cpu")
    return AutoTower(model, transform or TransformConfig(size=image_side(part)))


def image_part(settings: Any) -> Any:
    """A configuration, or of a dual encoder's that of its image side."""
    return settings.vision_config if settings.model_type in DUAL_ENCODERS else settings


def image_side(settings: Any) -> int:
    """Side of the images in pixels that a configuration means: DINOv2's position table is for larger ones."""
    if settings.model_type in _NAFLEX:
        return int(settings.num_patches**0.5) * int(settings.patch_size)
    side = getattr(settings, "image_size", None) or _USUAL_SIDE
    side = int(side if isinstance(side, int) else side[0])
    return _USUAL_SIDE if side == _DINOV2_TABLE else side


def fits(source: str) -> bool:
    """Whether a folder's or hub repository's config is that of an image encoder, or of a dual encoder with one."""
    family = model_type(source)
    return family in _ENCODERS or (family in DUAL_ENCODERS and family not in _OTHERS)


def without_pooling(model: Any) -> Any:
    """The model without the weights of its pooling layer."""
    for name in ("pooler", "head"):
        layer = getattr(model, name, None)
        if isinstance(layer, nn.Module) and any(True for _ in layer.parameters()):
            setattr(model, name, NoPooling())
    return model


def _whole(source: str, missing: Any) -> None:
    lacking = sorted(name for name in missing if not name.startswith(("pooler.", "head.")))
    if lacking:
        raise ArtifactError(
            f"{source!r} lacks {len(lacking)} tensors of its vision tower, e.g. {lacking[0]!r}. Give a folder with "
            "config.json and all weights of the model that it names."
        )


def _transform(source: str, part: Any) -> TransformConfig:
    return own_transform(source) or library_transform(source, image_side(part))


def _width(settings: Any) -> int:
    sizes = getattr(settings, "hidden_sizes", None)
    width = sizes[-1] if sizes else getattr(settings, "hidden_size", 0)
    return int(width)


def _patches(pixels_BCHW: torch.Tensor, patch: int) -> dict[str, torch.Tensor]:
    """A square image as NaFlex models read it: its patches, all of them visible, and the shape of their grid."""
    batch, channels, height, width = pixels_BCHW.shape
    grid = (height // patch, width // patch)
    cut = pixels_BCHW.reshape(batch, channels, grid[0], patch, grid[1], patch).permute(0, 2, 4, 3, 5, 1)
    patches_BPV = cut.reshape(batch, grid[0] * grid[1], -1)
    seen_BP = torch.ones(patches_BPV.shape[:2], dtype=torch.int32, device=pixels_BCHW.device)
    return {
        "pixel_values": patches_BPV,
        "pixel_attention_mask": seen_BP,
        "spatial_shapes": torch.tensor([grid] * batch, device=pixels_BCHW.device),
    }


_TITLE = "an image encoder of transformers (DINOv2, DINOv3, SigLIP, SigLIP 2, ViT, Swin, ConvNeXT, ...)"
BACKBONES.register(NAME)(Backbone(fits, load_auto_tower, outline=outline_auto_tower, title=_TITLE))
