"""Digests of a model folder that a library's upgrade does not change.

A settings file that a library writes (transformers, tokenizers, peft) changes with each release: its version number,
new fields at their defaults, other spellings of a type. None of that changes a vector, so none of it is part of the
digest.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from cirray.core import storage, written
from cirray.core.texts import parse_json

MANIFEST, MARKER, SEEN = "manifest.json", "stage.json", "seen-files.json"
"""What is no content: who made it, and when its source files were last seen (`cirray.data.changes`)."""
_PIECE_BYTES = 4 * 2**20
_WRITER = frozenset({"transformers_version", "dtype", "torch_dtype", "_name_or_path", "_commit_hash"})
"""Fields that do not count: who wrote the settings, where they were read from, and the weights' type (the weights have
it)."""
_CLASSES = {"image_processor_type", "feature_extractor_type", "video_processor_type", "processor_class"}
_DROPPED = {
    "config.json": _WRITER,
    "generation_config.json": _WRITER,
    "preprocessor_config.json": _WRITER | _CLASSES,
    "processor_config.json": _WRITER | _CLASSES,
    "config_sentence_transformers.json": frozenset({"__version__", "model_type"}),
    "tokenizer.json": frozenset({"version", "truncation", "padding"}),
}
"""File -> fields that do not count; `truncation` and `padding` are left over from the last call before saving."""
_CHOSEN = {
    "adapter_config.json": frozenset(
        {"peft_type", "r", "lora_alpha", "target_modules", "modules_to_save", "bias", "use_rslora", "use_dora",
         "fan_in_fan_out", "rank_pattern", "alpha_pattern", "layers_to_transform"}
    ),
    "tokenizer_config.json": frozenset(
        {"bos_token", "eos_token", "unk_token", "pad_token", "cls_token", "sep_token", "mask_token", "add_bos_token",
         "add_eos_token", "model_max_length", "do_lower_case", "padding_side", "truncation_side", "legacy",
         "add_prefix_space", "chat_template"}
    ),
}  # fmt: skip
"""File -> the fields that count, where a release adds fields at their defaults."""
_LEFT_OUT = ("special_tokens_map.json",)
"""Files that repeat another one; newer releases no longer write them."""


def directory_digest(uri: str | Path) -> str:
    """Digest of all data files below a URI (without manifest, stage marker and `SEEN`), independent of their dates.

    Libraries' settings files count by content: a model saved by two releases of transformers has one digest.
    """
    return joint_digest(digests_below(uri))


def digests_below(uri: str | Path, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Digests of all data files below a URI, by name in order; `known` ones are taken as they are, there or not."""
    taken = known or {}
    names = (name for name in storage.list_files(uri) if name not in (MANIFEST, MARKER, SEEN, *taken))
    read = {name: content_digest(storage.join(uri, name)) for name in names if not says_nothing(name)}
    return dict(sorted({**read, **taken}.items()))


def joint_digest(digests: Mapping[str, str]) -> str:
    """One digest of many files' names and digests."""
    total = hashlib.blake2b(digest_size=16)
    for name, digest in digests.items():
        total.update(f"{name}\x1f{digest}\x1f".encode())
    return total.hexdigest()


def says_nothing(name: str) -> bool:
    """Whether a file of a model's folder only repeats another one."""
    return PurePosixPath(name).name in _LEFT_OUT


def content_digest(uri: str) -> str:
    """Digest of one file: a library's settings file by the fields that count, any other by `file_digest`."""
    name = PurePosixPath(storage.without_query(uri)).name
    if name in _DROPPED or name in _CHOSEN:
        try:
            tree = parse_json(storage.read_bytes(uri))
        except ValueError:
            return file_digest(uri)
        if isinstance(tree, dict):
            return hashlib.blake2b(canonical(_counted(name, tree)).encode(), digest_size=16).hexdigest()
    return written.take(uri) or file_digest(uri)


def settings_text(settings: Mapping[str, Any]) -> str:
    """A model's `config.json` as text, in one order and without what the library says of itself."""
    return canonical(_counted("config.json", settings))


def spoken(tree: Any) -> Any:
    """Plain values without empty fields (null, false, empty) at any depth, since new options appear as such."""
    if isinstance(tree, Mapping):
        kept = {name: spoken(value) for name, value in tree.items()}
        return {name: value for name, value in kept.items() if value is not None and value is not False and value != {}}
    return tree


def canonical(tree: Any) -> str:
    """JSON text of plain values, equal for equal values whatever their order."""
    return json.dumps(tree, sort_keys=True, ensure_ascii=True)


def file_digest(uri: str) -> str:
    """Digest of one file's size and content; of a large one by the digests of its blocks, several at once."""
    filesystem, path = storage.resolve(uri)

    def pieces(begin: int) -> Iterator[bytes]:
        with filesystem.open_input_file(path) as stream:
            stream.seek(begin)
            for _ in range(0, written.BLOCK_BYTES, _PIECE_BYTES):
                yield stream.read(min(_PIECE_BYTES, written.BLOCK_BYTES))

    with storage.told(uri, "read"), ThreadPoolExecutor(storage.COPIES) as pool:
        return written.digest_of(filesystem.get_file_info(path).size, pieces, pool.map)


def _counted(name: str, tree: Mapping[str, Any]) -> Any:
    if name in _CHOSEN:
        return spoken({key: _sorted(value) for key, value in tree.items() if key in _CHOSEN[name]})
    if name == "config.json" and "model_type" not in tree:
        return dict(tree)  # cirray's own: every field counts
    return _without(tree, _DROPPED[name])


def _sorted(value: Any) -> Any:
    """Peft writes the set of its target modules in any order."""
    return sorted(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value


def _without(value: Any, dropped: frozenset[str]) -> Any:
    """Plain values without some fields, at any depth; `vocab` and the like hold words, not fields, and stay whole."""
    if isinstance(value, Mapping):
        return {
            key: (item if key in ("vocab", "model", "added_tokens") else _without(item, dropped))
            for key, item in value.items()
            if key not in dropped
        }
    return value
