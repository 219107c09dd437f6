"""Small causal language models in Hugging Face layout: word-level tokenizer, building, loading, bag embeddings.

A *bag* is a set of words in one input slot: their summed embeddings are one vector, like a soft token of the Q-Former.
"""

import hashlib
import importlib.util
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from cirray.core.errors import ArtifactError, ConfigError, DataError
from cirray.models.quiet import forget_old_names, quiet
from cirray.models.sources.files import READ_ERRORS, unreadable
from cirray.models.sources.hub import at_home
from cirray.models.sources.kinds import model_type, what_is
from cirray.models.sources.pretrained import pretrained, pretrained_model
from cirray.models.sources.tokenizers import read_tokenizer
from cirray.models.towers.config import LanguageModelConfig
from cirray.models.towers.frames import Frame, frame_of, glues

_FILES = "config.json, model.safetensors (or its shards) and the tokenizer's files"
_WANTED = (
    "Give a model that writes text, in Hugging Face layout: a causal one (LLaMA, OPT, ...) or an encoder-decoder (T5, "
    "...), or a whole BLIP-2 or InstructBLIP."
)
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
_PROBE = "a"
"""A text whose tokens show what a tokenizer puts around texts."""


@dataclass(frozen=True)
class LanguageModel:
    """A causal or encoder-decoder model with its tokenizer. `source`: a folder, a hub id, or "built"."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str = "built"

    @property
    def width(self) -> int:
        """Width of the input embeddings."""
        return int(_table(self.model).shape[1])

    @property
    def encodes(self) -> bool:
        """Whether an encoder reads the prompt and a decoder writes the answer (T5), or one model does both."""
        return bool(self.model.config.is_encoder_decoder)

    @property
    def pad_id(self) -> int:
        """Id of padding; models without a pad token use their end token."""
        return int(self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.end_id)

    @property
    def end_id(self) -> int:
        """Id that ends an answer. Raises ArtifactError when the tokenizer has no end token."""
        if self.tokenizer.eos_token_id is None:
            raise ArtifactError(f"The tokenizer of {self.source!r} has no end token; an answer could never end.")
        return int(self.tokenizer.eos_token_id)

    @property
    def vocabulary_hash(self) -> str:
        """16 hex digits over the tokenizer's words and ids."""
        return vocabulary_hash(self.tokenizer)

    @cached_property
    def start_ids(self) -> list[int]:
        """Ids that the tokenizer puts before a text: LLaMA's, Vicuna's and OPT's start token; none for T5 and GPT-2."""
        framed, plain = list(self.tokenizer(_PROBE)["input_ids"]), self.token_ids(_PROBE)
        places = [at for at in range(len(framed)) if framed[at : at + len(plain)] == plain]
        return framed[: places[0]] if places else []

    def token_ids(self, text: str) -> list[int]:
        """Ids of a text without any special token."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def word_ids(self, word: str) -> list[int]:
        """Ids of a word as it stands in a text, behind another word."""
        return self.token_ids(f" {word}" if self._glues else word)

    @cached_property
    def _glues(self) -> bool:
        return glues(self.tokenizer)

    def frame(self, kind: str = "auto") -> Frame:
        """What stands around a request to this model (`frame_of`)."""
        return frame_of(self.tokenizer, kind, self.start_ids, self.encodes)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Input embeddings of token ids, any leading shape."""
        return self.model.get_input_embeddings()(ids)

    def save(self, folder: str | Path) -> None:
        """Write `config.json`, `model.safetensors` and the tokenizer files."""
        with quiet():
            self.model.save_pretrained(str(folder))
        self.tokenizer.save_pretrained(str(folder))


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits over a tokenizer's words and ids."""
    text = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def build_word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Word-level tokenizer over every word of `texts`: lower case, punctuation split, nothing added around a text.

    Raises DataError when there is no word.
    """
    splitter, normalizer = BertPreTokenizer(), BertNormalizer(lowercase=True)
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    if not words:
        raise DataError("A tokenizer cannot be built: the texts hold no word. Give non-empty texts.")
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *sorted(words)])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def build_language_model(config: LanguageModelConfig, tokenizer: PreTrainedTokenizerBase) -> LanguageModel:
    """A small Llama with tied embeddings and random weights from the global torch generator."""
    settings = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=config.width, intermediate_size=config.intermediate,
        num_hidden_layers=config.layers, num_attention_heads=config.heads, max_position_embeddings=config.positions,
        initializer_range=config.initializer_range, tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return LanguageModel(LlamaForCausalLM(settings), tokenizer)


def load_language_model(
    source: str | Path, dtype: torch.dtype | None = torch.float32, quantization: str = "none", device: str = "cpu"
) -> LanguageModel:
    """Load any decoder-only or encoder-decoder model with its tokenizer, also from a whole BLIP-2 or InstructBLIP
    checkpoint.

    The stored type is kept where none is given. A quantised model ("8bit" or "4bit", bitsandbytes) must stay frozen and
    goes to the device; others stay on the CPU.

    Raises ArtifactError when nothing readable is there, or the model has no rows for all tokens, and ConfigError when
    bitsandbytes is needed and not installed.
    """
    packed = quantized_arguments(quantization, dtype, device)
    place = at_home(source)
    if Path(place).exists() and model_type(place) not in CONFIG_MAPPING:
        raise no_language(source)
    try:
        family, inner = _inner(place)
        model, report = pretrained_model(family, place, **{"dtype": dtype or "auto", **inner, **packed})
        tokenizer = read_tokenizer(place)
    except READ_ERRORS as error:
        raise unreadable("language model", source, error, _FILES) from None
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        lacks = f"lacks {len(missing)} tensors of a language model, e.g. {missing[0]!r}"
        raise ArtifactError(f"{str(source)!r} {lacks}: {what_is(source)}. {_WANTED}")
    if inner:
        forget_old_names(model)
    if len(tokenizer) > _table(model).shape[0]:
        model.resize_token_embeddings(len(tokenizer))
    return LanguageModel(model.eval(), tokenizer, str(source))


def no_language(source: str | Path) -> ArtifactError:
    """The error for a source that holds no language model: what is there, and what would be accepted."""
    return ArtifactError(f"No language model could be read from {str(source)!r}: {what_is(source)}. {_WANTED}")


def language_dtype(name: str) -> torch.dtype | None:
    """The type behind a config's `language_dtype`; None keeps the stored one."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}.get(name)


def quantized_arguments(quantization: str, dtype: torch.dtype | None, device: str) -> dict[str, Any]:
    """Arguments of `from_pretrained` that hold weights in 8 or 4 bits; none for "none".

    Raises ConfigError when the package bitsandbytes is not installed.
    """
    if quantization == "none":
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"language_quantization={quantization} needs the package bitsandbytes, which is not installed. Install it, "
            "or set language_quantization=none language_dtype=bfloat16."
        )
    compute = dtype if dtype in (torch.bfloat16, torch.float16) else torch.bfloat16
    if quantization == "8bit":
        settings = BitsAndBytesConfig(load_in_8bit=True)
    else:
        settings = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
        )
    return {"quantization_config": settings, "device_map": {"": device}, "dtype": compute}


def _inner(source: str | Path) -> tuple[Any, dict[str, Any]]:
    """The auto class, and arguments that read a whole checkpoint's language model (weights `language_model.*`)."""
    settings = pretrained(AutoConfig, source)
    whole = settings.model_type in ("blip-2", "instructblip")
    text = settings.text_config if whole else settings
    family: Any = AutoModelForSeq2SeqLM if text.is_encoder_decoder else AutoModelForCausalLM
    if type(text) not in family._model_mapping:
        raise no_language(source)
    if not whole:
        return family, {}
    return family, {"config": settings.text_config, "key_mapping": {r"^language_model\.": ""}}


def bag_ids(language: LanguageModel, bags: Sequence[Sequence[str]], width: int) -> torch.Tensor:
    """Ids of bags of words, padded with -1: `[len(bags), width]`.

    Raises DataError for a bag with more than `width` tokens, or a word the vocabulary lacks.
    """
    unknown = language.tokenizer.unk_token_id
    ids = torch.full((len(bags), width), -1, dtype=torch.int64)
    known = {word: language.word_ids(word) for word in {word for bag in bags for word in bag}}
    for row, bag in enumerate(bags):
        found = [number for word in bag for number in known[word]]
        if len(found) > width or unknown in found:
            raise DataError(f"The bag of words {list(bag)} has more than {width} tokens or words the model lacks.")
        ids[row, : len(found)] = torch.tensor(found)
    return ids


def embed_bags(language: LanguageModel, ids_BTW: torch.Tensor) -> torch.Tensor:
    """Sum of the word embeddings of each bag; negative ids are ignored. `[..., T, W] -> [..., T, D]`."""
    present = (ids_BTW >= 0).unsqueeze(-1)
    return (language.embed(ids_BTW.clamp_min(0)) * present).sum(dim=-2)


def _table(model: PreTrainedModel) -> torch.Tensor:
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight
