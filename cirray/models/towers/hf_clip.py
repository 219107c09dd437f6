"""CLIP in Hugging Face layout: vision tower with projection, text encoder with projection, tokenizer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerBase,
)

from cirray.core.errors import ArtifactError
from cirray.data.config import TransformConfig
from cirray.models.batch import TextBatch
from cirray.models.sources.files import READ_ERRORS, read_json, unreadable
from cirray.models.sources.kinds import model_type
from cirray.models.sources.pretrained import pretrained_model
from cirray.models.text import encode_texts, load_tokenizer
from cirray.models.towers.backbones import BACKBONES, Backbone
from cirray.models.towers.clip_tower import ClipTower, Tokens, stored_tokens
from cirray.models.towers.preprocessors import PREPROCESSOR, check_size, read_transform

NAME = "hf_clip"
_FILES = f"config.json, model.safetensors (or its shards), {PREPROCESSOR} and the tokenizer's files"
_SIZES = (
    "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads", "hidden_act",
    "layer_norm_eps",
)  # fmt: skip
_VISION = (*_SIZES, "num_channels", "image_size", "patch_size")
_TEXT = (*_SIZES, "vocab_size", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id")
"""The settings that decide a vector and so identify a model; transformers' own list changes with each release."""
_FAMILIES = ("clip", "clip_vision_model", "clip_text_model")


class HfClipTower(ClipTower):
    """`CLIPVisionModelWithProjection`, frozen."""

    def _sizes(self) -> tuple[int, int, int]:
        settings = self.model.config
        patches = (settings.image_size // settings.patch_size) ** 2
        width = int(settings.projection_dim)
        if self.tokens == "unprojected":
            width = max(width, int(settings.hidden_size))
        return width, 1 + (patches if self.tokens != "embedding" else 0), int(settings.image_size)

    def _embedding(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixels_BCHW.to(self.model.dtype)).image_embeds

    def _all_tokens(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        hidden_BPW = self.model.vision_model(pixel_values=pixels_BCHW.to(self.model.dtype)).last_hidden_state
        return self.model.visual_projection(self.model.vision_model.post_layernorm(hidden_BPW))

    def _unprojected(self, pixels_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model.vision_model(pixel_values=pixels_BCHW.to(self.model.dtype))
        return self.model.visual_projection(output.pooler_output), output.last_hidden_state[:, 1:]

    def _description(self) -> dict[str, Any]:
        return {"tokens": self.tokens, **fields_of(self.model.config, _VISION)}


class HfClipText(nn.Module):
    """`CLIPTextModelWithProjection` with its tokenizer."""

    family = "CLIP"
    """How errors call it."""
    parts: tuple[Any, Any] = (CLIPTextModelWithProjection, CLIPTextConfig)
    """transformers' classes of the model and its configuration."""
    deciding: tuple[str, ...] = _TEXT
    """Fields of the configuration that decide a vector."""
    width_field = "projection_dim"
    """Field of the configuration with the width of the vectors."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        """Wrap a model."""
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.embed_dim = int(getattr(model.config, self.width_field) or model.config.hidden_size)

    @classmethod
    def load(cls, source: str) -> "HfClipText":
        """With the weights and the tokenizer of a folder or hub id.

        Raises ArtifactError when nothing readable is there.
        """
        model = read_part(cls.parts[0], source, torch.float32, cls.family, "text encoder")
        return cls(model, load_tokenizer(source))

    @classmethod
    def build(cls, description: Mapping[str, Any], words: Path | PreTrainedTokenizerBase) -> "HfClipText":
        """Of a configuration, with random weights from the global torch generator and a tokenizer, or a folder's."""
        model, settings = cls.parts
        return cls(model(settings(**dict(description))), load_tokenizer(words) if isinstance(words, Path) else words)

    def forward(self, text: TextBatch) -> torch.Tensor:
        """Vectors `[B, D]`, not normalised."""
        return self.model(input_ids=text.ids_BT, attention_mask=text.mask_BT).text_embeds

    def tokenize(self, texts: Sequence[str], length: int) -> TextBatch:
        """Token ids, cut at `length` and at the model's own limit.

        Raises DataError for an empty list or a blank text.
        """
        return encode_texts(self.tokenizer, texts, min(length, int(self.model.config.max_position_embeddings)))

    def description(self) -> dict[str, Any]:
        """The fields of the text model's configuration that decide its vectors."""
        return fields_of(self.model.config, self.deciding)

    def vocabulary(self) -> Mapping[str, int]:
        """Token -> id."""
        return dict(self.tokenizer.get_vocab())

    def save_words(self, folder: Path) -> None:
        """Write the tokenizer's files."""
        self.tokenizer.save_pretrained(str(folder))


def load_hf_clip_tower(source: str, dtype: torch.dtype | None) -> HfClipTower:
    """Vision tower of a CLIP folder or hub id, or of a folder that `save` wrote.

    Raises ArtifactError when nothing readable is there, or its images have another size than its position table.
    """
    model = read_part(CLIPVisionModelWithProjection, source, dtype, "CLIP", "vision tower")
    return HfClipTower(model, transform_of(source, model.config), tokens_of(source))


def transform_of(source: str, settings: Any) -> TransformConfig:
    """How a dual encoder's folder prepares images, checked against its vision model's configuration.

    Raises ArtifactError when its images have another size than its position table.
    """
    side = int(settings.image_size)
    transform = read_transform(source, side)
    check_size(source, transform, side, int(settings.patch_size))
    return transform


def fits(source: str) -> bool:
    """Whether a folder's or hub repository's config is CLIP's."""
    return model_type(source) in _FAMILIES


def read_part(cls: Any, source: str, dtype: torch.dtype | None, family: str, part: str) -> Any:
    """One part of a dual encoder in transformers' layout, in evaluation mode; errors name family and part.

    Raises ArtifactError when it cannot be read, or lacks tensors.
    """
    try:
        model, report = pretrained_model(cls, source, dtype=dtype or "auto")
    except READ_ERRORS as error:
        raise unreadable(f"{family} model", source, error, _FILES) from None
    if missing := sorted(report["missing_keys"]):
        raise ArtifactError(
            f"{source!r} lacks {len(missing)} tensors of its {part}, e.g. {missing[0]!r}. Give a folder with "
            f"config.json and all weights of a {family} model."
        )
    return model.eval()


def fields_of(settings: Any, names: Sequence[str]) -> dict[str, Any]:
    """Some fields of a configuration."""
    return {name: getattr(settings, name) for name in names}


def tokens_of(source: str) -> Tokens:
    """Which tokens the tower of a folder gives, as `save` wrote it; the embedding elsewhere."""
    path = Path(source) / PREPROCESSOR
    return stored_tokens(read_json(path) if path.is_file() else {})


BACKBONES.register(NAME)(
    Backbone(fits, load_hf_clip_tower, HfClipText.load, HfClipText.build, title="CLIP in Hugging Face layout")
)
