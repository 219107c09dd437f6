"""The dual-encoder retriever: frozen image vectors, a text encoder, a fusion head. CLIP4CIR and its kin.

Inputs (cached tokens of a frozen tower), outputs and training loop are those of `QFormerRetriever`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from cirray.core.config import merged, validate
from cirray.core.errors import ConfigError
from cirray.models.base import NOTHING_MORE, RETRIEVERS, Retriever, RetrieverKind, torch_seed
from cirray.models.batch import RetrievalBatch, RetrieverOutput, TextBatch, Wanted
from cirray.models.config import DualEncoderConfig
from cirray.models.fusion.arithmetic import Weighted, no_pictures
from cirray.models.fusion.config import DUAL_HEADS, JOINT, WEIGHTLESS
from cirray.models.text_processors import process
from cirray.models.towers.backbones import BACKBONES, load_text_encoder, no_texts
from cirray.types import Composition, stable_id

SCRATCH = "hf_clip"
"""Backbone of text encoders that are built from scratch."""
_FIXED = ("source", "text", "embed_dim", "image_projection", "pooling")


class DualEncoderRetriever(Retriever):
    """Encodes (reference, text) into a query vector and images into one vector each; all outputs L2-normalised."""

    kind = "dual"
    config: DualEncoderConfig

    def __init__(self, config: DualEncoderConfig, text_encoder: Any, backbone: str, patch_width: int) -> None:
        """Random head from the global torch generator around a given text encoder.

        Raises ConfigError when tokens and texts do not share a space, or the text encoder cannot do what is asked.
        """
        super().__init__()
        _check_text_encoder(config, text_encoder)
        width = int(text_encoder.embed_dim)
        if patch_width != width and not config.image_projection:
            raise ConfigError(
                f"The tower's tokens have width {patch_width}, the texts' vectors {width}. Make the towers from the "
                "same checkpoint, or set encoder.settings.image_projection=true to learn a map."
            )
        self.config = config.model_copy(update={"embed_dim": width})
        self.backbone, self.patch_width, self.text_encoder = backbone, patch_width, text_encoder
        self.image_projection = nn.Linear(patch_width, width) if config.image_projection else nn.Identity()
        self.head = DUAL_HEADS.get(config.fusion.kind)(config.fusion.settings, width)
        self.raw_temperature = nn.Parameter(torch.tensor([config.temperature]), requires_grad=config.learn_temperature)
        self.temperature_range = config.temperature_clamp if config.learn_temperature else None
        text_encoder.requires_grad_(config.train_text)
        if config.gradient_checkpointing and hasattr(text_encoder.model, "gradient_checkpointing_enable"):
            text_encoder.model.gradient_checkpointing_enable()

    def train(self, mode: bool = True) -> "DualEncoderRetriever":
        """Training mode; a frozen text encoder stays in eval mode."""
        super().train(mode)
        if not self.config.train_text:
            self.text_encoder.eval()
        return self

    def token_ids(self, texts: Sequence[str]) -> TextBatch:
        """Token ids on the model's device. Raises DataError: for an empty list."""
        return self.text_encoder.tokenize(texts, self.config.text_length).to(self.device)

    @property
    def target_digest(self) -> str:
        """Digest of pooling and image projection; the text side may differ."""
        state = self.image_projection.state_dict()
        content = [(name, weight.detach().cpu().numpy().tobytes().hex()) for name, weight in sorted(state.items())]
        return stable_id("dual target", self.config.pooling, self.patch_width, self.config.embed_dim, *content)

    def target_weights(self) -> dict[str, nn.Parameter]:
        """The image projection's, where there is one."""
        return {f"image_projection.{name}": weight for name, weight in self.image_projection.named_parameters()}

    def encode_reference(self, patches_BPD: torch.Tensor) -> torch.Tensor:
        """The part of the query that does not depend on the text: the tower's tokens in the common space.

        Raises ConfigError for tokens where the composition is `joint`, whose state are the pictures.
        """
        if not self.reads_pictures:
            return self._projected(patches_BPD)
        if patches_BPD.dtype != torch.uint8:
            raise no_pictures()
        return patches_BPD

    @property
    def reads_pictures(self) -> bool:
        """With the composition `joint`."""
        return self.config.fusion.kind == JOINT

    def compose(self, state_BPD: torch.Tensor, text: TextBatch) -> torch.Tensor:
        """Query vectors `[B, D]`, norm 1."""
        if self.reads_pictures:
            return _unit(self.text_encoder.together(state_BPD, text))
        return self._fuse(state_BPD, self.text_encoder(text))

    @property
    def composition(self) -> Composition:
        """The fusion; a head without weights may be exchanged for another one, see `changed`."""
        name = self.config.fusion.kind
        weight = self.head.share if isinstance(self.head, Weighted) else None
        free = compositions(self.text_encoder)
        return Composition(name, weight, free if name in free else ())

    def compose_weighted(self, state_BPD: torch.Tensor, text: TextBatch, share_B: torch.Tensor) -> torch.Tensor:
        """As `compose`, with the text's share of each query. Raises ConfigError: when the fusion has no such share."""
        if not isinstance(self.head, Weighted):
            return super().compose_weighted(state_BPD, text, share_B)
        return _unit(self.head(self._pooled(state_BPD), state_BPD, self.text_encoder(text), share_B.to(self.device)))

    def encode_gallery(self, patches_BPD: torch.Tensor) -> torch.Tensor:
        """Gallery vectors `[B, 1, D]`, norm 1."""
        return _unit(self._pooled(self._projected(patches_BPD)))[:, None]

    def encode_picture(self, patches_BPD: torch.Tensor) -> torch.Tensor:
        """Query vectors `[B, D]` of pictures alone, norm 1; with `joint` as the encoder reads a query."""
        if self.reads_pictures:
            return _unit(self.text_encoder.together(self.encode_reference(patches_BPD), None))
        return super().encode_picture(patches_BPD)

    def encode_text(self, text: TextBatch) -> torch.Tensor:
        """Text vectors `[B, D]`, norm 1."""
        return _unit(self.text_encoder(text))

    def forward(self, batch: RetrievalBatch, wanted: Wanted = NOTHING_MORE) -> RetrieverOutput:
        """All outputs that an objective needs, in one forward pass.

        Raises ConfigError when prototypes are wanted, which a dual encoder does not have.
        """
        self.refuse(wanted)
        if wanted.reverse or wanted.prompts:
            name = "two_hop" if wanted.reverse else "prompt_align"
            raise ConfigError(
                f"The term {name} needs prototypes, which a dual encoder does not have; set training.terms.{name}=0."
            )
        state_BPD, text_BD = self.encode_reference(batch.reference_BPD), self.text_encoder(batch.text)
        references_BQD = _unit(self._pooled(state_BPD))[:, None] if wanted.references else None
        return RetrieverOutput(
            query_BD=self._fuse(state_BPD, text_BD), target_BQD=self.encode_gallery(batch.target_BPD),
            temperature=self.temperature, reference_BQD=references_BQD, negative_MQD=self.encode_negatives(batch),
            text_query_BD=_unit(text_BD) if wanted.text_only else None,
        )  # fmt: skip

    def changed(self, settings: Mapping[str, Any]) -> "DualEncoderRetriever":
        """The same encoders with another head or another tuning, such as a Combiner over a tuned text encoder.

        A new head starts at random, from the global torch generator.

        Raises ConfigError for a setting that the weights fix.
        """
        config = changed_dual(self.config.to_dict(), settings)
        made = DualEncoderRetriever(config, self.text_encoder, self.backbone, self.patch_width)
        made.image_projection.load_state_dict(self.image_projection.state_dict())
        shapes = [{name: item.shape for name, item in head.state_dict().items()} for head in (made.head, self.head)]
        if config.fusion.kind == self.config.fusion.kind and shapes[0] == shapes[1]:
            made.head.load_state_dict(self.head.state_dict())
        if "temperature" not in settings:
            with torch.no_grad():
                made.raw_temperature.copy_(self.temperature)
        return made

    def description(self) -> dict[str, Any]:
        """Configuration, backbone and the text encoder's sizes, for `config.json`; no path of the source."""
        config = self.config.model_copy(update={"source": ""})
        return {"retriever": config.to_dict(), "backbone": self.backbone, "text": self.text_encoder.description()}

    def save_words(self, folder: Path) -> None:
        """Write the tokenizer's files."""
        self.text_encoder.save_words(folder)

    def vocabulary(self) -> Mapping[str, int]:
        """Word piece -> id."""
        return self.text_encoder.vocabulary()

    def _fuse(self, state_BPD: torch.Tensor, text_BD: torch.Tensor) -> torch.Tensor:
        return _unit(self.head(self._pooled(state_BPD), state_BPD, text_BD))

    def _projected(self, patches_BPD: torch.Tensor) -> torch.Tensor:
        return self.image_projection(patches_BPD.to(self.device, self.raw_temperature.dtype))

    def _pooled(self, state_BPD: torch.Tensor) -> torch.Tensor:
        return state_BPD[:, 0] if self.config.pooling == "first" else state_BPD.mean(dim=1)


def compositions(text_encoder: Any) -> tuple[str, ...]:
    """Compositions without training that a text encoder takes part in, its usual one first."""
    return (JOINT, *WEIGHTLESS) if getattr(text_encoder, "reads_both", False) else WEIGHTLESS


def _check_text_encoder(config: DualEncoderConfig, text_encoder: Any) -> None:
    if config.train_text and not getattr(text_encoder, "trainable", True):
        raise ConfigError(
            "encoder.settings.train_text=true is for CLIP and SigLIP; a model of sentence-transformers stays as it is. "
            "Set it to false."
        )
    if config.fusion.kind == JOINT and JOINT not in compositions(text_encoder):
        raise ConfigError(
            "The composition 'joint' needs a model that reads picture and text together; this one reads each alone. "
            f"Use one of {', '.join(WEIGHTLESS)}."
        )


def build_dual(
    config: DualEncoderConfig, texts: Sequence[str], patch_width: int, seed: int = 0
) -> DualEncoderRetriever:
    """A dual encoder with the source's text encoder, or one from scratch that knows the words of `texts`; random
    weights depend only on the seed.

    Raises ArtifactError when the source cannot be read, and ConfigError when the source is of no known backbone, or
    tokens and texts do not share a space.
    """
    with torch_seed(seed):
        if not config.source:
            return DualEncoderRetriever(config, _scratch(config, texts), SCRATCH, patch_width)
        name, encoder = load_text_encoder(config.source)
        if not name:
            raise no_texts("encoder.settings.source", config.source)
        return DualEncoderRetriever(config, encoder, name, patch_width)


def text_settings(config: DualEncoderConfig, tokenizer: Any) -> Mapping[str, Any]:
    """Fields of a `CLIPTextConfig` for a text encoder from scratch behind a tokenizer."""
    sizes = config.text
    return {
        "vocab_size": len(tokenizer), "hidden_size": sizes.width, "intermediate_size": sizes.intermediate,
        "projection_dim": config.embed_dim, "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
        "max_position_embeddings": sizes.positions, "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id,
    }  # fmt: skip


def _scratch(config: DualEncoderConfig, texts: Sequence[str]) -> Any:
    from cirray.models.text import build_tokenizer
    from cirray.models.towers.hf_clip import HfClipText

    tokenizer = build_tokenizer(process(config.text_processor, texts))
    return HfClipText.build(text_settings(config, tokenizer), tokenizer)


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    """L2-normalised in float32, also under autocast."""
    return functional.normalize(vectors.float(), dim=-1)


def _load(description: Mapping[str, Any], folder: Path) -> DualEncoderRetriever:
    backbone = str(description["backbone"])
    text = BACKBONES.get(backbone).build_text(description["text"], folder)
    config = validate(DualEncoderConfig, description["retriever"])
    return DualEncoderRetriever(config, text, backbone, int(description["patch_width"]))


def changed_dual(own: Mapping[str, Any], settings: Mapping[str, Any]) -> DualEncoderConfig:
    """A saved configuration with some fields changed.

    Raises ConfigError for a setting that the weights fix, or a value that no field takes.
    """
    for name in settings:
        if name in _FIXED:
            raise ConfigError(
                f"encoder.settings.{name} cannot be changed in a checkpoint; of a dual encoder {', '.join(_FIXED)} "
                "stay as they are. Leave it out."
            )
    return validate(DualEncoderConfig, merged({**own, "source": ""}, settings))


RETRIEVERS.register(DualEncoderRetriever.kind)(
    RetrieverKind(
        build_dual, _load, check_changes=lambda said, settings, place: changed_dual(said["retriever"], settings)
    )
)
