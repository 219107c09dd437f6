"""BLIP-2 and InstructBLIP checkpoints as start weights: Q-Former, queries, projections, text embeddings, `ln_vision`.

transformers keeps LAVIS' trainable `ln_vision` as the vision model's `post_layernorm`. Here the frozen tower ends in
that LayerNorm without its affine part (`load_vision_tower`), which `QueryingTransformer.vision_norm` has, so that it is
trained on cached tokens. Two LayerNorms in a row differ from one only by their epsilons.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Blip2Config, InstructBlipConfig, PreTrainedTokenizerBase

from cirray.core.config import validate
from cirray.core.errors import ArtifactError, reason_of, unknown_name
from cirray.models.composed import QFormerRetriever, build_retriever
from cirray.models.config import QFormerConfig, RetrieverConfig
from cirray.models.qformer import QueryingTransformer
from cirray.models.sources.files import READ_ERRORS, WeightSource, listed, open_weights
from cirray.models.sources.tokenizers import read_tokenizer
from cirray.models.text import check_tokenizer, load_tokenizer

FAMILIES: dict[str, Any] = {"blip-2": Blip2Config, "instructblip": InstructBlipConfig}
_SPARE_ROWS = 8
_READER = "qformer_tokenizer"


@dataclass(frozen=True)
class Blip2Source:
    """A checkpoint of either family. `instruct`: where the text embeddings are; `text`: whether there are any."""

    weights: WeightSource
    settings: Any
    instruct: bool
    text: bool

    @property
    def name(self) -> str:
        """Folder or hub id."""
        return self.weights.name

    @property
    def patch_width(self) -> int:
        """Width of the vision tokens that the Q-Former reads."""
        return int(self.settings.vision_config.hidden_size)

    @property
    def projected(self) -> int:
        """Width of the common space; 0: the checkpoint has no projections to one."""
        there = "text_projection.weight" in self.weights.places
        return int(self.settings.image_text_hidden_size) if there else 0

    def sizes(self, base: QFormerConfig) -> QFormerConfig:
        """`base` with the checkpoint's sizes, dropout and start; other fields are kept."""
        start = {"initializer_range": self.settings.qformer_config.initializer_range}
        return validate(type(base), {**base.to_dict(), **stated_sizes(self.settings), **start})

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the Q-Former's text side. Raises ArtifactError: when the checkpoint has none."""
        if not self.instruct:
            return load_tokenizer(self.name)
        try:
            tokenizer = read_tokenizer(self.name, _READER)
        except (OSError, ValueError) as error:
            reason = reason_of(error)
            raise ArtifactError(
                f"{self.name!r} holds no Q-Former tokenizer ({_READER}/: {reason}). Put a BERT tokenizer's files there."
            ) from None
        check_tokenizer(tokenizer, f"{self.name}/{_READER}")
        return tokenizer

    def used_names(self) -> list[str]:
        """Names of all tensors that a retriever or generator may use: all but tower and language model."""
        own = ("vision_model.post_layernorm.",)
        skipped = ("vision_model.", "language_model.", "lm_head.", "itm_head.")
        return [name for name in self.weights.names if name.startswith(own) or not name.startswith(skipped)]

    @property
    def digest(self) -> str:
        """16 hex digits over the configuration and the files of those tensors."""
        return self.weights.digest(self.used_names())

    def load(self, qformer: QueryingTransformer) -> None:
        """Copy the checkpoint's weights into a Q-Former of its sizes.

        Raises ArtifactError when tensors are missing, or their shapes do not fit.
        """
        names = {own: self._name_of(own) for own in qformer.state_dict()}
        stored = self.weights.read(names.values())
        self._fill(qformer, {own: stored[name] for own, name in names.items()})

    def load_linear(self, layer: nn.Linear, name: str) -> None:
        """Copy one projection. Raises ArtifactError: as `load`."""
        stored = self.weights.read([f"{name}.weight", f"{name}.bias"])
        self._fill(layer, {key.removeprefix(f"{name}."): value for key, value in stored.items()})

    def _name_of(self, own: str) -> str:
        if own.startswith("vision_norm."):
            return own.replace("vision_norm", "vision_model.post_layernorm", 1)
        if not self.instruct:
            return own
        moved = own.replace("qformer.layernorm.", "qformer.embeddings.layernorm.", 1)
        return f"qformer.{moved}" if moved.startswith("embeddings.") else moved

    def _fill(self, module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
        own = module.state_dict()
        fitted = {name: _fit(self.name, name, value, own[name]) for name, value in tensors.items()}
        with torch.no_grad():
            module.load_state_dict(fitted)


def stated_sizes(settings: Any) -> dict[str, Any]:
    """Fields of a `QFormerConfig` that a BLIP-2 or InstructBLIP configuration states: its sizes and dropout."""
    inner = settings.qformer_config
    return {
        "width": inner.hidden_size, "layers": inner.num_hidden_layers, "heads": inner.num_attention_heads,
        "queries": settings.num_query_tokens, "intermediate": inner.intermediate_size,
        "cross_attention_frequency": inner.cross_attention_frequency, "dropout": inner.hidden_dropout_prob,
        "positions": inner.max_position_embeddings,
    }  # fmt: skip


def open_blip2(source: str) -> Blip2Source:
    """Open a checkpoint in the layout of `Blip2ForImageTextRetrieval`, `Blip2ForConditionalGeneration` or
    `InstructBlipForConditionalGeneration`.

    Raises ArtifactError when there is none, or of another architecture.
    """
    weights = open_weights(source, ("query_tokens",))
    family = str(weights.config.get("model_type", ""))
    if family not in FAMILIES:
        raise ArtifactError(
            f"{source!r} is of the wrong architecture: {unknown_name('model_type', family, FAMILIES)} "
            "Give e.g. Salesforce/blip2-itm-vit-g; `cirray convert` reads files of LAVIS and SPRC."
        )
    try:
        settings = FAMILIES[family].from_dict(weights.config)
    except (*READ_ERRORS, TypeError) as error:
        reason = reason_of(error, 200)
        raise ArtifactError(f"The config.json of {source!r} is no {family} configuration: {reason}") from None
    if "query_tokens" not in weights.places:
        raise ArtifactError(f"{source!r} holds no query_tokens among its tensors ({listed(weights.names)}).")
    text = weights.has("qformer.encoder.layer.0.intermediate.")
    return Blip2Source(weights, settings, family == "instructblip", text)


def retriever_from(
    source: Blip2Source, config: RetrieverConfig, tokenizer: PreTrainedTokenizerBase | None = None, seed: int = 0
) -> QFormerRetriever:
    """A retriever that starts from a checkpoint with a text side.

    Sizes are the checkpoint's. What it lacks starts at random from the seed: the learned prompts (BLIP-2 has none), the
    projections to the embedding space (InstructBLIP has none; `config.embed_dim` is then their width). The tokenizer is
    for a checkpoint that has none.

    Raises ArtifactError: no text side, a tokenizer that does not fit, missing tensors, wrong shapes.
    """
    words = check_start(source, config, tokenizer)
    width = source.projected or config.embed_dim
    sized = config.model_copy(update={"qformer": source.sizes(config.qformer), "embed_dim": width})
    retriever = build_retriever(sized, words, source.patch_width, seed)
    source.load(retriever.qformer)
    if source.projected:
        source.load_linear(retriever.text_projection, "text_projection")
        source.load_linear(retriever.vision_projection, "vision_projection")
    _load_extras(source, retriever)
    _load_matching(source, retriever)
    return retriever


def check_start(
    source: Blip2Source, config: RetrieverConfig, tokenizer: PreTrainedTokenizerBase | None = None
) -> PreTrainedTokenizerBase:
    """Refuse a checkpoint that no retriever can start from; no weights are read.

    Returns: the retriever's tokenizer.

    Raises ArtifactError: no text side, a tokenizer that does not fit, no matching head to hold fixed.
    """
    require_text(source, "a retriever")
    words = tokenizer or source.tokenizer()
    check_vocabulary(source, words)
    if config.matching == "frozen" and "itm_head.weight" not in source.weights.places:
        raise ArtifactError(
            f"{source.name!r} has no matching head (itm_head) to hold fixed; set encoder.settings.matching=trained, or "
            "start from Salesforce/blip2-itm-vit-g."
        )
    return words


def require_text(source: Blip2Source, what: str) -> None:
    """Refuse a checkpoint whose Q-Former reads no text. Raises ArtifactError: naming one that does."""
    if not source.text:
        raise ArtifactError(
            f"The Q-Former of {source.name!r} has no text side, which {what} needs. Start from a stage 1 checkpoint "
            "(Salesforce/blip2-itm-vit-g) or from InstructBLIP."
        )


def check_vocabulary(source: Blip2Source, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that does not fit the checkpoint's word table.

    Raises ArtifactError when the sizes differ by more than a few spare rows, or there is no [CLS].
    """
    rows, words = int(source.settings.qformer_config.vocab_size), len(tokenizer)
    if not rows - _SPARE_ROWS <= words <= rows:
        raise ArtifactError(
            f"The tokenizer has {words:,} tokens, the word table of {source.name!r} {rows:,} rows. Give the tokenizer "
            "that belongs to it (LAVIS: bert-base-uncased with [DEC] added)."
        )
    if tokenizer.cls_token_id is None:
        raise ArtifactError(f"The tokenizer of {source.name!r} has no [CLS] token; give a BERT-style one.")


def check_temperature(source: Blip2Source) -> None:
    """Refuse a checkpoint without a temperature when its own was asked for.

    Raises ArtifactError saying which file has one.
    """
    if "temperature" not in source.weights.places:
        raise ArtifactError(
            f"{source.name!r} holds no temperature (Hugging Face's copies of BLIP-2 leave it out). Start from LAVIS' "
            "own file (cirray convert source=blip2_pretrained.pth), or give a number, e.g. temperature=0.07."
        )


def _load_extras(source: Blip2Source, retriever: QFormerRetriever) -> None:
    """SPRC's and PTHA's prompts and LAVIS' temperature, if a converted checkpoint has them and none was given."""
    found = source.weights.read([name for name in ("prompt_tokens", "temperature") if name in source.weights.places])
    with torch.no_grad():
        if "prompt_tokens" in found:
            prompts_QW = found["prompt_tokens"].reshape(-1, found["prompt_tokens"].shape[-1])
            retriever.prompts.copy_(_fit(source.name, "prompt_tokens", prompts_QW, retriever.prompts))
        if "temperature" in found and "temperature" not in retriever.config.model_fields_set:
            retriever.raw_temperature.fill_(float(found["temperature"]))


def _load_matching(source: Blip2Source, retriever: QFormerRetriever) -> None:
    """BLIP-2's image-text matching layer as the start of the matching head.

    It reads query positions, as `matching_hard` does; VDG reads text positions. It may be trained or held fixed.
    """
    if retriever.matching_head is not None and "itm_head.weight" in source.weights.places:
        source.load_linear(retriever.matching_head.classifier, "itm_head")


def _fit(source: str, name: str, value: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """A stored tensor in our tensor's shape and type, without spare rows of a word table."""
    if name.endswith("word_embeddings.weight") and 0 < value.shape[0] - own.shape[0] <= _SPARE_ROWS:
        value = value[: own.shape[0]]
    if value.shape != own.shape:
        raise ArtifactError(
            f"The tensor {name!r} of {source!r} has shape {tuple(value.shape)}, the model needs {tuple(own.shape)}. "
            "Its config.json does not belong to its weights, or another width was asked for."
        )
    return value.to(own.dtype)
