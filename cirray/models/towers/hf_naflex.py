"""SigLIP 2 NaFlex in Hugging Face layout: pictures in their own shape, as many whole patches as the model reads.

The vector is the pooling head's output; texts are read as SigLIP's are, padded to the full length.
"""

from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, Siglip2TextConfig, Siglip2TextModel, Siglip2VisionModel

from cirray.core.errors import ArtifactError, ConfigError
from cirray.data.config import OwnShapeConfig
from cirray.models.quiet import quiet
from cirray.models.sources.files import READ_ERRORS, read_json, unreadable
from cirray.models.sources.kinds import model_type
from cirray.models.sources.pretrained import pretrained
from cirray.models.towers.backbones import BACKBONES, Backbone
from cirray.models.towers.clip_tower import MARK, ClipTower, Tokens
from cirray.models.towers.hf_clip import fields_of, read_part
from cirray.models.towers.hf_siglip import HfSiglipText
from cirray.models.towers.preprocessors import PREPROCESSOR, own_transform
from cirray.transforms import unpacked

NAME = "hf_naflex"
_DECIDING = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
             "layer_norm_eps", "num_channels", "patch_size", "num_patches", "vision_use_head")  # fmt: skip


class NaflexTower(ClipTower):
    """`Siglip2VisionModel`, frozen, on packed pictures."""

    transform: OwnShapeConfig

    def forward(self, packed_BL: torch.Tensor) -> torch.Tensor:
        """Embeddings `[B, 1, D]`, not normalised."""
        return self.model(**self.inputs(packed_BL)).pooler_output[:, None]

    def inputs(self, packed_BL: torch.Tensor) -> dict[str, torch.Tensor]:
        """The model's inputs: normalised patches `[B, P, V]`, which of them are a picture's, and the grids `[B, 2]`."""
        side, most = self.transform.patch, self.transform.most_patches
        pictures = unpacked(packed_BL.cpu().numpy())
        grids_B2 = torch.tensor([[height // side, width // side] for height, width, _ in (p.shape for p in pictures)])
        pixels_BPV = np.zeros((len(pictures), most, side * side * 3), np.uint8)
        for row, picture in enumerate(pictures):
            patches_PV = _patches(picture, side)
            pixels_BPV[row, : len(patches_PV)] = patches_PV
        seen_BP = (torch.arange(most) < grids_B2.prod(dim=1, keepdim=True)).to(packed_BL.device)
        numbers_BPV = torch.from_numpy(pixels_BPV).to(packed_BL.device).float()
        numbers_BPV = (numbers_BPV - self.mean_C.repeat(side * side)) / self.std_C.repeat(side * side)
        return {
            "pixel_values": (numbers_BPV * seen_BP[..., None]).to(self.model.dtype),
            "pixel_attention_mask": seen_BP.int(), "spatial_shapes": grids_B2.to(packed_BL.device),
        }  # fmt: skip

    def with_tokens(self, tokens: Tokens) -> NoReturn:
        """Refuse other tokens. Raises ConfigError: always."""
        raise ConfigError(
            f"clip_tokens={tokens} needs as many patches of every picture, and SigLIP 2 NaFlex reads each in its own "
            "shape. Leave the field out."
        )

    def _sizes(self) -> tuple[int, int, int]:
        return int(self.model.config.hidden_size), 1, self.transform.size

    def _description(self) -> dict[str, Any]:
        return fields_of(self.model.config, _DECIDING)


class NaflexText(HfSiglipText):
    """`Siglip2TextModel` with its tokenizer."""

    family = "SigLIP 2"
    parts: tuple[Any, Any] = (Siglip2TextModel, Siglip2TextConfig)


def load_tower(source: str, dtype: torch.dtype | None) -> NaflexTower:
    """Vision tower of a folder or hub id, or of a folder that `save` wrote.

    Raises ArtifactError when nothing readable is there, or it does not say how pictures are prepared.
    """
    model = read_part(Siglip2VisionModel, source, dtype, "SigLIP 2", "vision tower")
    return NaflexTower(model, own_transform(source) or _transform(source, int(model.config.patch_size)))


def fits(source: str) -> bool:
    """Whether a folder holds a tower that `save` wrote; others give all tokens of a square picture (`auto`)."""
    path = Path(source) / PREPROCESSOR
    return model_type(source) == "siglip2_vision_model" and path.is_file() and MARK in read_json(path)


def is_dual(source: str) -> bool:
    """Whether a folder's or hub repository's config is that of a whole SigLIP 2 NaFlex."""
    return model_type(source) == "siglip2"


def _transform(source: str, patch: int) -> OwnShapeConfig:
    """How the source's own processor prepares pictures."""
    try:
        with quiet():
            settings = pretrained(AutoImageProcessor, source).to_dict()
        given, most = int(settings["patch_size"]), int(settings["max_num_patches"])
        filter_name = Image.Resampling(int(settings["resample"])).name.lower()
        means = {"mean": tuple(settings["image_mean"]), "std": tuple(settings["image_std"])}
        side = max(8, round(given * most**0.5))
        made = OwnShapeConfig(
            size=side, mode="patches", patch=given, most_patches=most, resample=filter_name, **means
        )  # fmt: skip
    except (*READ_ERRORS, TypeError, ImportError) as error:
        raise unreadable("preparation of pictures", source, error, PREPROCESSOR) from None
    if given != patch:
        raise ArtifactError(
            f"The model in {source!r} reads patches of {patch} px, its {PREPROCESSOR} makes {given} px. Correct the "
            "preprocessor's patch_size."
        )
    return made


def _patches(picture_HWC: np.ndarray, side: int) -> np.ndarray:
    """Patches `[P, side * side * 3]` of a picture, row by row."""
    height, width, channels = picture_HWC.shape
    cut = picture_HWC.reshape(height // side, side, width // side, side, channels).swapaxes(1, 2)
    return cut.reshape(-1, side * side * channels)


BACKBONES.register(NAME)(
    Backbone(
        fits,
        load_tower,
        NaflexText.load,
        NaflexText.build,
        title="SigLIP 2 NaFlex in Hugging Face layout",
        is_dual=is_dual,
    )
)
