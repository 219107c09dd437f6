"""Configuration of pseudo-word retrievers. No torch."""

from typing import Literal

from pydantic import Field, model_validator

from cirray.core.config import Config
from cirray.core.fields import Place
from cirray.models.text_processors import ProcessorName


class PhiConfig(Config):
    """The map from an image embedding to a token: two hidden layers."""

    hidden: int = Field(0, ge=0)
    """Width of the hidden layers; 0: 4 x the image embedding's (SEARLE, LinCIR). Pic2Word: 512."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Dropout after each hidden layer (SEARLE, LinCIR: 0.5; Pic2Word: 0.1)."""
    activation: Literal["gelu", "relu"] = "gelu"
    """Pic2Word: relu."""
    reads: Literal["unit", "raw"] = "unit"
    """`unit`: the embedding at norm sqrt(width), so that text may stand in for an image (LinCIR); `raw`: as it is."""


class InjectionConfig(Config):
    """Visual semantic injection: gated cross-attention from the token to the image's patches. 0 layers: none."""

    layers: int = Field(2, ge=0)
    """Layers; 0 leaves plain phi."""
    heads: int = Field(8, ge=1)
    """Attention heads; divide the width of the word embeddings."""
    factor: int = Field(4, ge=1)
    """Width inside the feed-forward over the word embeddings'."""


class WordMapConfig(Config):
    """A pseudo-word retriever over a CLIP text encoder: reference image -> token(s) in the slot of a prompt."""

    source: Place = ""
    """The CLIP: a folder or hub id in Hugging Face layout, a folder of open_clip, `open_clip:NAME=FILE`, CLIP4Cir's
    tuned .pt, or a towers artifact of `cirray clip`. Not kept in checkpoints, which hold the weights themselves."""
    query: Literal["composed", "image", "text", "sum"] = "composed"
    """What a query is: prompt with pseudo-word and text, or a training-free row: image, text, or the sum of the two."""
    phi: PhiConfig = PhiConfig()
    """Image embedding -> token(s)."""
    injection: InjectionConfig = InjectionConfig()
    """What the patches add to the token(s), before the text encoder."""
    tokens: int = Field(1, ge=1)
    """Tokens that stand for an image, side by side at the slot; they count against the text limit."""
    prompt: str = "a photo of $"
    """The pseudo-sentence of an image alone; `$` is the slot."""
    query_prompt: str = "a photo of $ that {text}"
    """The query's prompt (Pic2Word: `a photo of $ , {text}`)."""
    tuning: Literal["adapter", "lora", "full", "none"] = "adapter"
    """What the composing stage trains in the text encoder; start weights leave every embedding as it was."""
    adapter_width: int = Field(64, ge=1)
    """Inner width of the bottleneck adapters."""
    lora_rank: int = Field(8, ge=1)
    """Rank of `tuning=lora`."""
    embed_dim: int = Field(0, ge=0)
    """Width of the common space; set from the source."""
    text_length: int = Field(77, ge=4)
    """Longest prompt in tokens; the text is trimmed, never the slot or the end."""
    text_processor: ProcessorName = "none"
    """What modifications and captions pass before they enter a prompt: none, or blip_caption (LAVIS)."""
    temperature: float = Field(0.07, gt=0)
    """Temperature of the composing stage, fixed."""
    similarity: Literal["dot"] = "dot"
    """Query against an image's one vector."""

    @model_validator(mode="after")
    def _short(self) -> "WordMapConfig":
        if self.tokens + 3 > self.text_length:
            raise ValueError(f"tokens {self.tokens} leave no room for words in text_length {self.text_length}")
        return self
