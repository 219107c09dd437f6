"""Configuration of language models, and sizes of small towers that are built from scratch. No torch."""

from typing import Literal

from pydantic import Field, model_validator

from cirray.core.config import Config


class LanguageModelConfig(Config):
    """Sizes of a `LlamaForCausalLM` that is built from scratch (a pretrained one brings its own)."""

    width: int = Field(128, ge=8)
    """Width of the token vectors."""
    layers: int = Field(4, ge=1)
    """Transformer layers."""
    heads: int = Field(4, ge=1)
    """Attention heads; divide the width."""
    intermediate: int = Field(320, ge=8)
    """Width inside the feed-forward."""
    positions: int = Field(256, ge=16)
    """Longest sequence."""
    initializer_range: float = Field(0.05, gt=0)
    """Standard deviation of the start weights."""

    @model_validator(mode="after")
    def _fits(self) -> "LanguageModelConfig":
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"heads {self.heads} must divide width {self.width} into even parts")
        return self


class FrozenLanguageConfig(Config):
    """How the weights of a generator's language model are held."""

    language_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Type of the language model's weights; `auto` keeps the stored one. A model that stays frozen may have 16 bits,
    which halve its memory and the time of a step."""
    language_quantization: Literal["none", "8bit", "4bit"] = "none"
    """Hold the frozen language model in 8 or 4 bits (needs bitsandbytes)."""


class ClipModelConfig(Config):
    """Sizes of a `CLIPModel` that is built from scratch (a pretrained one brings its own)."""

    image_size: int = Field(48, ge=16)
    """Side of the square images in pixels."""
    patch_size: int = Field(16, ge=4)
    """Side of one patch in pixels; divides the image size."""
    vision_width: int = Field(128, ge=8)
    """Width of the patch tokens."""
    vision_layers: int = Field(2, ge=1)
    """Layers of the vision tower."""
    text_width: int = Field(128, ge=8)
    """Width of the word embeddings."""
    text_layers: int = Field(3, ge=1)
    """Layers of the text encoder."""
    heads: int = Field(4, ge=1)
    """Attention heads of both; divide both widths."""
    embed_dim: int = Field(128, ge=8)
    """Width of the common space."""
    positions: int = Field(77, ge=8)
    """Longest text in tokens."""

    @model_validator(mode="after")
    def _fits(self) -> "ClipModelConfig":
        if self.vision_width % self.heads or self.text_width % self.heads:
            raise ValueError(f"heads {self.heads} must divide widths {self.vision_width} and {self.text_width}")
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} must divide image_size {self.image_size}")
        return self
