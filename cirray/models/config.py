"""Configuration of encoders: frozen vision tower, Q-Former, composed-image retriever. No torch."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from cirray.core.components import Component
from cirray.core.config import Config
from cirray.core.fields import Effort, Place
from cirray.core.registry import Registry
from cirray.models.fusion.config import DualFusion, HeadConfig, QFormerFusion
from cirray.models.text_processors import ProcessorName
from cirray.models.words.config import WordMapConfig

if TYPE_CHECKING:
    from cirray.models.base import RetrieverKind


def _spelt(value: Any) -> Any:
    """YAML reads a bare `true` as a truth value."""
    return "true" if value is True else value


class VisionTowerConfig(Config):
    """Sizes of a `Blip2VisionModel` that is built from scratch (a pretrained one brings its own)."""

    image_size: int = Field(48, ge=16)
    """Side of the square input in pixels."""
    patch_size: int = Field(16, ge=4)
    """Side of one patch in pixels; divides the image size."""
    width: int = Field(96, ge=8)
    """Width of the patch tokens."""
    layers: int = Field(2, ge=1)
    """Transformer layers."""
    heads: int = Field(4, ge=1)
    """Attention heads; divide the width."""
    intermediate: int = Field(384, ge=8)
    """Width inside the feed-forward."""
    initializer_range: float = Field(0.02, gt=0)
    """Standard deviation of the start weights."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Attention implementation of transformers."""

    @model_validator(mode="after")
    def _fits(self) -> "VisionTowerConfig":
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} must divide image_size {self.image_size}")
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} must divide width {self.width}")
        return self


class QFormerConfig(Config):
    """Sizes of a `Blip2QFormerModel` with learned queries. BLIP-2's own: 768, 12, 12, 32, 2, 3072."""

    width: int = Field(128, ge=8)
    """Width of queries and text tokens."""
    layers: int = Field(2, ge=1)
    """Transformer layers."""
    heads: int = Field(4, ge=1)
    """Attention heads; divide the width."""
    queries: int = Field(9, ge=1)
    """Learned query tokens."""
    cross_attention_frequency: int = Field(1, ge=1)
    """Step between layers in which the queries attend to the patches, from layer 0 on."""
    intermediate: int = Field(512, ge=8)
    """Width inside both feed-forwards (query and text)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on hidden states and attention weights (BLIP-2: 0.1)."""
    initializer_range: float = Field(0.02, gt=0)
    """Standard deviation of the start weights; narrow models learn faster from larger ones (about 1 / sqrt(width))."""
    positions: int = Field(512, ge=8)
    """Longest text, learned prompts included."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Attention implementation; "eager" is faster for bf16 training on a CPU."""

    @classmethod
    def blip2(cls) -> Self:
        """The published size: BERT-base with 32 queries, cross-attention in every second layer, dropout 0.1."""
        return cls(
            width=768, layers=12, heads=12, queries=32, cross_attention_frequency=2, intermediate=3072, dropout=0.1,
            initializer_range=0.02, positions=512,
        )  # fmt: skip

    @model_validator(mode="after")
    def _fits(self) -> "QFormerConfig":
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} must divide width {self.width}")
        return self


class RetrieverConfig(Config):
    """A composed-image retriever: frozen patch tokens in, normalised query and gallery tokens out."""

    fusion: QFormerFusion = QFormerFusion()
    """How image and text become one query."""
    qformer: QFormerConfig = QFormerConfig(intermediate=256, initializer_range=0.05)
    """The one Q-Former that all passes share."""
    embed_dim: int = Field(64, ge=2)
    """Width of query and gallery vectors (BLIP-2: 256)."""
    text_length: int = Field(32, ge=2)
    """Longest text in word pieces, special tokens included; longer texts are cut on the right."""
    text_processor: ProcessorName = "none"
    """Text processor before the tokenizer: none, or blip_caption (LAVIS; used by SPRC, PTHA and SPN)."""
    temperature: float = Field(0.07, gt=0)
    """Start of the learnable temperature."""
    temperature_clamp: tuple[float, float] | None = (0.01, 0.1)
    """Range of the temperature (improved), or null for a free one (paper)."""
    readout: Literal["mean33", "cls"] = "mean33"
    """Pass B's summary: mean of the fused tokens and [CLS] (PTHA: 33 tokens), or [CLS] alone (SPRC)."""
    inference_readout: Literal["mean33", "cls"] | None = None
    """Another summary at inference (the released PTHA code reads [CLS]), or null for the same."""
    text_mask: Annotated[Literal["true", "ones"], BeforeValidator(_spelt)] = "true"
    """Pass B's mask in training: padding hidden, or attended as the released code does. Inference always hides it."""
    similarity: Literal["max_tokens", "dot"] = "max_tokens"
    """Query against the best of an image's tokens, or against their mean."""
    prompt_std: float = Field(0.02, gt=0)
    """Standard deviation of the learned prompts' start (text-only branch)."""
    matching: Literal["none", "trained", "frozen"] = "none"
    """Head for target-delta matching (term tdm, VDG): none, trained, or held fixed as loaded."""
    gradient_checkpointing: Effort[bool] = False
    """Trade compute for memory in training."""


class TextTowerConfig(Config):
    """Sizes of a CLIP text encoder that is built from scratch (a pretrained one brings its own)."""

    width: int = Field(64, ge=8)
    """Width of the token vectors."""
    layers: int = Field(2, ge=1)
    """Transformer layers."""
    heads: int = Field(4, ge=1)
    """Attention heads; divide the width."""
    intermediate: int = Field(256, ge=8)
    """Width inside the feed-forward."""
    positions: int = Field(77, ge=8)
    """Longest text in tokens."""

    @model_validator(mode="after")
    def _fits(self) -> "TextTowerConfig":
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} must divide width {self.width}")
        return self


class DualEncoderConfig(Config):
    """A dual-encoder retriever: one vector an image, one vector a text, and a head that fuses the two into a query."""

    source: Place = ""
    """Where the text encoder comes from: a CLIP folder or hub id, a folder of open_clip, `open_clip:NAME=FILE`, or
    CLIP4Cir's tuned .pt; empty: one of `text`'s sizes with random weights."""
    fusion: DualFusion = DualFusion()
    """How image and text vector become the query."""
    embed_dim: int = Field(64, ge=2)
    """Width of the common space; with `source`, its own."""
    text: TextTowerConfig = TextTowerConfig()
    """Sizes of a text encoder without `source`."""
    train_text: bool = True
    """Train the text encoder (CLIP4CIR's first stage), or the head alone (its second)."""
    pooling: Literal["first", "mean"] = "first"
    """An image's vector: token 0 (CLIP's image embedding), or the mean of its tokens."""
    image_projection: bool = False
    """A learned linear layer on the tower's tokens: needed where they are not of the common space's width."""
    text_length: int = Field(77, ge=2)
    """Longest text in tokens, special ones included."""
    text_processor: ProcessorName = "none"
    """Text processor before the tokenizer: none, or blip_caption (LAVIS)."""
    temperature: float = Field(0.01, gt=0)
    """Temperature of the contrastive loss (CLIP4CIR: 100 x cosine)."""
    learn_temperature: bool = False
    """Whether the temperature is trained."""
    temperature_clamp: tuple[float, float] | None = (0.01, 0.1)
    """Range of a trained temperature; null: free (on few triplets it may cross 0, which reverses the ranking)."""
    similarity: Literal["dot"] = "dot"
    """Query against an image's one vector."""
    gradient_checkpointing: Effort[bool] = False
    """Trade compute for memory in the text encoder."""

    @model_validator(mode="after")
    def _fits(self) -> "DualEncoderConfig":
        if not self.source and isinstance(self.fusion.settings, HeadConfig):
            self.fusion.settings.check(self.embed_dim)
        if self.source and self.text != TextTowerConfig():
            raise ValueError("text says the sizes of an encoder from scratch, but source brings its own; leave one out")
        return self


RETRIEVERS: "Registry[RetrieverKind]" = Registry(
    "kind of retriever", [f"cirray.models.{name}" for name in ("composed", "dual", "forked", "words.word_map")],
    {"qformer": RetrieverConfig, "dual": DualEncoderConfig, "word_map": WordMapConfig, "forked": Config},
)  # fmt: skip
"""Kind -> constructor."""


class Encoder(Component):
    """The network that encodes queries and galleries."""

    registry = RETRIEVERS
    kind: str = "qformer"
    """Name of the kind: a composed retriever with a Q-Former, a dual encoder, a map to pseudo-words, or another."""
