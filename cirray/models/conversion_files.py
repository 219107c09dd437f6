"""Convert files of LAVIS, SPRC and MTST_PTHA to a folder in Hugging Face layout, and back.

config.json          of transformers' Blip2ForImageTextRetrieval or InstructBlipForConditionalGeneration
model.safetensors    every tensor of the file, in its own type
conversion.json      format, sizes, and what the file had around its state dict
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Blip2Config, InstructBlipConfig, PreTrainedTokenizerBase

from cirray.core.errors import ArtifactError, ConfigError
from cirray.models.conversion import (
    FORMATS,
    POSITION_IDS,
    Sizes,
    find_format,
    original_sizes,
    to_original,
    to_ours,
)
from cirray.models.sources.file_forms import is_safetensors
from cirray.models.sources.files import CONFIG, SINGLE, check_floats, open_weights, read_json, read_pickle, read_tensors
from cirray.models.sources.state_dicts import stripped

RECORD = "conversion.json"
_MARKS = ("query_tokens",)
_PLAIN = (int, float, str, bool, type(None))


@dataclass(frozen=True)
class Original:
    """An original file: its state dict, the key of it (empty: none), and the plain values beside it."""

    state: dict[str, torch.Tensor]
    wrapper: str = ""
    beside: dict[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    """Other content of the file, such as optimiser states."""


@dataclass(frozen=True)
class Record:
    """What is needed to convert back."""

    format: str
    sizes: Sizes
    wrapper: str = ""
    beside: dict[str, Any] = field(default_factory=dict)
    position_ids: bool = False

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> "Record":
        """The content of `conversion.json`."""
        return cls(**{**tree, "sizes": Sizes(**tree["sizes"])})


@dataclass(frozen=True)
class Heads:
    """Attention heads, which shapes do not tell."""

    qformer: int
    vision: int


def read_original(path: Path) -> Original:
    """Read a `.pth`, `.pt`, `.bin` or `.safetensors` file; code in a pickle is refused and never run.

    Raises ArtifactError when the file is damaged, holds code, or no single state dict.
    """
    tree: Any = read_tensors(path) if is_safetensors(path) else read_pickle(path)
    if not isinstance(tree, dict):
        raise ArtifactError(f"{str(path)!r} holds a {type(tree).__name__}; a dictionary of tensors is needed.")
    if tree and all(isinstance(value, torch.Tensor) for value in tree.values()):
        return _checked(path, Original(stripped(tree, _MARKS, str(path))))
    inner = [str(key) for key, value in tree.items() if isinstance(value, dict) and _has_queries(value)]
    if len(inner) != 1:
        raise ArtifactError(
            f"{str(path)!r} is of the wrong architecture: it holds {len(inner)} state dicts with query_tokens among "
            f"{sorted(map(str, tree))[:8]}; one is needed, at the top, under 'model' or under the model's class name."
        )
    rest = {str(key): value for key, value in tree.items() if str(key) != inner[0]}
    beside = {key: value for key, value in rest.items() if isinstance(value, _PLAIN)}
    left_out = tuple(sorted(set(rest) - set(beside)))
    return _checked(path, Original(stripped(tree[inner[0]], _MARKS, str(path)), inner[0], beside, left_out))


def _has_queries(state: Mapping[Any, Any]) -> bool:
    return any(str(name).rpartition(".")[2] in _MARKS for name in state)


def convert(original: Original, form: str = "auto") -> tuple[dict[str, torch.Tensor], Record]:
    """An original state dict under transformers' names, and the record to convert back.

    Raises ArtifactError for a file that is not exactly of one known format.
    """
    found = find_format(original.state, form)
    sizes = original_sizes(original.state, found)
    ours = to_ours(original.state, found, sizes)
    return ours, Record(found, sizes, original.wrapper, original.beside, POSITION_IDS in original.state)


def huggingface_settings(record: Record, heads: Heads) -> dict[str, Any]:
    """`config.json` of the transformers model that reads the tensors.

    Raises ConfigError when the heads do not divide the widths.
    """
    sizes, instruct = record.sizes, FORMATS[record.format].instruct
    for name, count, width in (("qformer", heads.qformer, sizes.width), ("vision", heads.vision, sizes.patch_width)):
        if width % count:
            raise ConfigError(
                f"{name}_heads={count} does not divide the width {width}; give the number it was built with."
            )
    qformer: dict[str, Any] = {
        "vocab_size": sizes.vocabulary, "hidden_size": sizes.width, "num_hidden_layers": sizes.layers,
        "num_attention_heads": heads.qformer, "intermediate_size": sizes.intermediate,
        "max_position_embeddings": sizes.positions, "cross_attention_frequency": sizes.frequency,
        "encoder_hidden_size": sizes.patch_width,
    }  # fmt: skip
    vision: dict[str, Any] = {"hidden_size": sizes.patch_width, "num_attention_heads": heads.vision}
    if sizes.tower_layers:
        vision |= {
            "num_hidden_layers": sizes.tower_layers, "intermediate_size": sizes.tower_intermediate,
            "patch_size": sizes.patch, "image_size": sizes.image_size,
        }  # fmt: skip
    common: dict[str, Any] = {"vision_config": vision, "num_query_tokens": sizes.queries}
    if instruct:
        settings: Any = InstructBlipConfig(qformer_config=qformer, text_config=_speaker(record), **common)
        settings.architectures = ["InstructBlipForConditionalGeneration"]
    else:
        qformer["use_qformer_text_input"] = True
        settings = Blip2Config(qformer_config=qformer, image_text_hidden_size=sizes.projected, **common)
        settings.architectures = ["Blip2ForImageTextRetrieval"]
    return dict(json.loads(settings.to_json_string()))


def _speaker(record: Record) -> dict[str, Any]:
    """The language model behind the projection; it is not in the file, so only family and width are known."""
    width = record.sizes.projected
    if record.format.endswith("t5"):
        return {"model_type": "t5", "d_model": width}
    heads = width // 128 if width % 128 == 0 else 1
    return {"model_type": "llama", "hidden_size": width, "num_attention_heads": heads, "num_key_value_heads": heads}


def write_weights(
    folder: Path, tensors: Mapping[str, torch.Tensor], record: Record, heads: Heads,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:  # fmt: skip
    """Write the folder that `open_blip2` and `load_vision_tower` read.

    Raises ConfigError: see `huggingface_settings`.
    """
    settings = huggingface_settings(record, heads)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    # Tied tensors share memory in a pickle; safetensors holds each by itself.
    single = {name: value.contiguous().clone() for name, value in tensors.items()}
    save_file(single, str(folder / SINGLE), {"format": "pt"})
    (folder / RECORD).write_text(json.dumps(asdict(record), indent=2, sort_keys=True) + "\n")
    if tokenizer is not None:
        place = folder / "qformer_tokenizer" if FORMATS[record.format].instruct else folder
        tokenizer.save_pretrained(str(place))


def read_weights(folder: Path) -> tuple[dict[str, torch.Tensor], Record]:
    """What `write_weights` wrote. Raises ArtifactError: when the folder holds no converted checkpoint."""
    if not (folder / RECORD).is_file():
        raise ArtifactError(
            f"{str(folder)!r} holds no {RECORD}, so it cannot be written in its original format; give a folder that "
            "`cirray convert` made, or a checkpoint artifact."
        )
    weights = open_weights(str(folder))
    return weights.read(weights.names), Record.of(read_json(folder / RECORD))


def write_original(path: Path, tensors: Mapping[str, torch.Tensor], record: Record) -> None:
    """Write the original file again: the same names, values, types, and the same values around the state dict.

    Raises ArtifactError when tensors are missing or left over, or a key bias is not zero.
    """
    state = to_original(tensors, record.format, record.sizes, record.position_ids)
    torch.save({**record.beside, record.wrapper: state} if record.wrapper else state, str(path))


def extend_tokenizer(tokenizer: PreTrainedTokenizerBase, rows: int) -> PreTrainedTokenizerBase:
    """LAVIS adds [DEC] to BERT's tokens: add it where exactly one is missing.

    Raises ArtifactError when the vocabulary then still differs from the table.
    """
    if len(tokenizer) == rows - 1:
        tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    if len(tokenizer) != rows:
        raise ArtifactError(
            f"The tokenizer has {len(tokenizer):,} tokens, the checkpoint's word table {rows:,} rows. Give the "
            "tokenizer it was trained with (bert-base-uncased)."
        )
    return tokenizer


def _checked(path: Path, original: Original) -> Original:
    floats = {
        name: value for name, value in original.state.items()
        if not name.endswith(("embeddings.position_ids", "relative_position_index"))
    }  # fmt: skip
    check_floats(str(path), floats)
    return original
