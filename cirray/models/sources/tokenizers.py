"""The tokenizer of any source, by transformers' reader or (LLaMA) from its own files."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import cached_file

from cirray.models.sources.files import CONFIG, read_json
from cirray.models.sources.hub import at_home
from cirray.models.sources.pieces import CLASSES, MODEL, is_llama, llama_tokenizer, read_pieces
from cirray.models.sources.pretrained import pretrained

_WHOLE = "tokenizer.json"
_OTHERS = ("spiece.model", "sentencepiece.bpe.model")
_TEMPLATE = "chat_template.jinja"


def read_tokenizer(source: str | Path, subfolder: str = "") -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id, or of a folder inside it.

    Raises ArtifactError when its SentencePiece file is damaged, or a JSON file is none, and OSError or ValueError as
    transformers' reader, when nothing readable is there.
    """
    place = at_home(source)
    return _own(place, subfolder) or pretrained(AutoTokenizer, place, subfolder=subfolder)


@contextmanager
def with_whole_tokenizer(source: str | Path) -> Iterator[str]:
    """The source, or (if `read_tokenizer` makes its tokenizer) a temporary folder for transformers.

    That folder has links to the source's settings and the tokenizer in transformers' layout, no weights.

    Raises ArtifactError as `read_tokenizer`.
    """
    place = at_home(source)
    tokenizer, settings = _own(place, ""), _file(place, "", CONFIG)
    if tokenizer is None or settings is None:
        yield place
        return
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in settings.parent.iterdir():
            link = Path(folder) / path.name
            if not link.exists() and (path.is_dir() or path.suffix in (".json", ".jinja", ".txt")):
                link.symlink_to(path.resolve())
        yield folder


def _own(place: str, subfolder: str) -> PreTrainedTokenizerBase | None:
    """LLaMA's tokenizer from its files, if need be only the SentencePiece file; None: not LLaMA's.

    transformers' class for LLaMA ignores how a `tokenizer.json` treats blanks.
    """
    if _file(place, subfolder, _WHOLE) is not None:
        whole = _json(place, subfolder, "tokenizer_config.json").get("tokenizer_class") in CLASSES
        return pretrained(PreTrainedTokenizerFast, place, subfolder=subfolder) if whole else None
    models = {name: path for name in (MODEL, *_OTHERS) if (path := _file(place, subfolder, name)) is not None}
    settings = _settings(place, subfolder) if MODEL in models else {}
    if MODEL in models and is_llama(settings, _json(place, "", CONFIG)):
        tokenizer = llama_tokenizer(models[MODEL], settings, _added(place, subfolder, settings))
        tokenizer.name_or_path = place
        return tokenizer
    for path in models.values():
        read_pieces(path)
    return None


def _settings(place: str, subfolder: str) -> dict[str, Any]:
    """`special_tokens_map.json` overlaid by `tokenizer_config.json`, and the chat template's file."""
    named = {**_json(place, subfolder, "special_tokens_map.json"), **_json(place, subfolder, "tokenizer_config.json")}
    template = _file(place, subfolder, _TEMPLATE)
    return named if template is None else {**named, "chat_template": template.read_text()}


def _added(place: str, subfolder: str, settings: Mapping[str, Any]) -> dict[int, AddedToken]:
    """Tokens beyond the SentencePiece file, by id, from `added_tokens.json` and the settings."""
    plain = {int(number): AddedToken(text) for text, number in _json(place, subfolder, "added_tokens.json").items()}
    names = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    for number, tree in dict(settings.get("added_tokens_decoder") or {}).items():
        plain[int(number)] = AddedToken(**{name: tree[name] for name in names if name in tree})
    return plain


def _json(place: str, subfolder: str, name: str) -> dict[str, Any]:
    path = _file(place, subfolder, name)
    return {} if path is None else read_json(path)


def _file(place: str, subfolder: str, name: str) -> Path | None:
    """A file of a folder, or of a hub repository (fetched if the hub answers)."""
    if Path(place).exists():
        path = Path(place) / subfolder / name
        return path if path.is_file() else None
    try:
        found = cached_file(place, name, subfolder=subfolder, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):
        return None
    return Path(found) if found else None
