"""Configuration of the towers that are pretrained here: the small language model. No torch."""

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
