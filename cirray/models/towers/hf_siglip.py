"""SigLIP and SigLIP 2 (fixed resolution) in Hugging Face layout: both towers with their pooling heads, tokenizer.

Both read texts as trained: always padded to the full length, padding not masked. The vector is the head's output.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import SiglipTextConfig, SiglipTextModel, SiglipVisionModel

from cirray.core.errors import ConfigError
from cirray.models.batch import TextBatch
from cirray.models.sources.files import read_json
from cirray.models.sources.kinds import model_type
from cirray.models.text import encode_texts
from cirray.models.towers.backbones import BACKBONES, Backbone
from cirray.models.towers.clip_tower import MARK, ClipTower
from cirray.models.towers.hf_clip import HfClipText, fields_of, read_part, tokens_of, transform_of
from cirray.models.towers.preprocessors import PREPROCESSOR

NAME = "hf_siglip"
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
          "layer_norm_eps")  # fmt: skip
_VISION = (*_SIZES, "num_channels", "image_size", "patch_size", "vision_use_head")
_TEXT = (*_SIZES, "vocab_size", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id",
         "projection_size")  # fmt: skip
_TOWER = "siglip_vision_model"


class HfSiglipTower(ClipTower):
    """`SiglipVisionModel`, frozen. The embedding is its attention pooling's."""

    def _sizes(self) -> tuple[int, int, int]:
        settings = self.model.config
        patches = (settings.image_size // settings.patch_size) ** 2
        return int(settings.hidden_size), 1 + (patches if self.tokens != "embedding" else 0), int(settings.image_size)

    def _embedding(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixels_BCHW.to(self.model.dtype)).pooler_output

    def _all_tokens(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        raise ConfigError(
            "clip_tokens=all needs patch tokens in the embedding's space, which SigLIP's attention pooling does not "
            "give. Use clip_tokens=unprojected, or embedding."
        )

    def _unprojected(self, pixels_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model(pixel_values=pixels_BCHW.to(self.model.dtype))
        return output.pooler_output, output.last_hidden_state

    def _description(self) -> dict[str, Any]:
        return {"tokens": self.tokens, **fields_of(self.model.config, _VISION)}


class HfSiglipText(HfClipText):
    """`SiglipTextModel` with its tokenizer."""

    family, deciding = "SigLIP", _TEXT
    parts: tuple[Any, Any] = (SiglipTextModel, SiglipTextConfig)
    width_field = "projection_size"

    def forward(self, text: TextBatch) -> torch.Tensor:
        """Vectors `[B, D]`, not normalised. Padding is read, as in training."""
        return self.model(input_ids=text.ids_BT).pooler_output

    def tokenize(self, texts: Sequence[str], length: int) -> TextBatch:
        """Token ids, always of the model's full length, whatever `length` is.

        Raises DataError for an empty list or a blank text.
        """
        full = int(self.model.config.max_position_embeddings)
        return encode_texts(self.tokenizer, texts, full, pad_to=full)


def load_tower(source: str, dtype: torch.dtype | None) -> HfSiglipTower:
    """Vision tower of a SigLIP folder or hub id, or of a folder that `save` wrote.

    Raises ArtifactError when nothing readable is there, or its images have another size than its position table.
    """
    model = read_part(SiglipVisionModel, source, dtype, "SigLIP", "vision tower")
    return HfSiglipTower(model, transform_of(source, model.config), tokens_of(source))


def fits(source: str) -> bool:
    """Whether a folder holds a tower that `save` wrote; other SigLIPs give all their tokens (`auto`)."""
    path = Path(source) / PREPROCESSOR
    return model_type(source) == _TOWER and path.is_file() and MARK in read_json(path)


def is_dual(source: str) -> bool:
    """Whether a folder's or hub repository's config is that of a whole SigLIP."""
    return model_type(source) == "siglip"


BACKBONES.register(NAME)(
    Backbone(
        fits, load_tower, HfSiglipText.load, HfSiglipText.build, title="SigLIP in Hugging Face layout", is_dual=is_dual
    )
)
