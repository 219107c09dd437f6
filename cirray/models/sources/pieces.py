"""LLaMA's tokenizer from `tokenizer.model` alone, as in LLaMA and Vicuna folders; ids are SentencePiece's.

transformers' reader gives such a folder no start token where `tokenizer_config.json` does not name the class, drops a
leading blank, and takes a file that it cannot parse for tiktoken's. Here SentencePiece parses the file, it becomes a
`tokenizers` object, and is refused unless both give equal ids.

`legacy` in `tokenizer_config.json` (default true): whether SentencePiece's blank before a text also follows every
special token in it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE, Unigram
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cirray.core.errors import ArtifactError

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor  # at run time only where there is such a file

MODEL = "tokenizer.model"
CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast", "LLaMATokenizer")
"""LLaMA's tokenizer classes in `tokenizer_config.json`."""
_ANY_CLASS = ("", "PreTrainedTokenizerFast", "TokenizersBackend")
_FAMILIES = ("llama", "mistral", "mixtral")
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_BLANK = "\u2581"
_SAMPLES = ("make it red, not blue", "  two  blanks ", "a 12-inch\nscreen", "\u00e9t\u00e9 \U0001f642")
_KEPT = ("padding_side", "model_max_length", "clean_up_tokenization_spaces", "chat_template")


def is_llama(settings: Mapping[str, Any], model: Mapping[str, Any]) -> bool:
    """Whether a folder's tokenizer is LLaMA's."""
    named = str(settings.get("tokenizer_class") or "")
    if named not in _ANY_CLASS:
        return named in CLASSES
    inner = model.get("text_config") or model
    return not model or str(inner.get("model_type", "")) in _FAMILIES


def llama_tokenizer(
    path: Path, settings: Mapping[str, Any], added: Mapping[int, AddedToken] | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a `tokenizer.model`.

    Raises ArtifactError when the file is no SentencePiece model, or one that `tokenizers` cannot reproduce.
    """
    model, processor = read_pieces(path)
    named = {name: _special(model, settings, name) for name in ("bos", "eos", "unk", "pad")}
    control = [piece.piece for piece in model.pieces if piece.type == _CONTROL]
    special = [text for text in dict.fromkeys([*named.values(), *control]) if text]
    backend = _backend(model)
    backend.normalizer, legacy = _normalizer(model, special, settings), settings.get("legacy") is not False
    known = [text for text in special if backend.token_to_id(text) is not None]
    backend.add_special_tokens([AddedToken(text, normalized=not legacy, special=True) for text in known])
    backend.add_tokens([piece.piece for piece in model.pieces if piece.type == _USER_DEFINED])
    _check(path, processor, backend)
    _add(path, backend, added or {})
    backend.post_processor = _frame(backend, named, settings)
    kept = {name: settings[name] for name in _KEPT if settings.get(name) is not None}
    tokens = {f"{name}_token": text for name, text in named.items() if text}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{"padding_side": "left", **kept, **tokens})


def read_pieces(path: Path) -> "tuple[Any, SentencePieceProcessor]":
    """A parsed SentencePiece file, and SentencePiece's processor of it.

    Raises ArtifactError for anything but a whole SentencePiece model.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    protocol: Any = sentencepiece_model_pb2
    data, model = path.read_bytes(), protocol.ModelProto()
    try:
        model.ParseFromString(data)
        if model.pieces and model.HasField("trainer_spec"):
            return model, SentencePieceProcessor(model_proto=data)
    except (DecodeError, RuntimeError):
        pass
    raise ArtifactError(
        f"{str(path)!r} is no whole SentencePiece model: it has {len(data):,} bytes and begins with {data[:24]!r}. "
        "Fetch the file again, or put the model's tokenizer.json beside it (Llama 3's file of this name is of another "
        "kind)."
    )


def _backend(model: Any) -> Tokenizer:
    """BPE with all merges of two pieces, better pieces first; or Unigram."""
    pieces, spec = model.pieces, model.trainer_spec
    if spec.model_type == type(spec).UNIGRAM:
        scored = [(piece.piece, piece.score) for piece in pieces]
        backend = Tokenizer(Unigram(scored, unk_id=spec.unk_id, byte_fallback=spec.byte_fallback))
    else:
        ids = {piece.piece: number for number, piece in enumerate(pieces)}
        plain = {piece.piece for piece in pieces if piece.type == _NORMAL}
        merges: list[tuple[str, str]] = []
        for text in sorted(plain, key=lambda text: (-pieces[ids[text]].score, ids[text])):
            cuts = [(text[:at], text[at:]) for at in range(1, len(text))]
            merges += [(left, right) for left, right in cuts if left in plain and right in plain]
        unknown = pieces[spec.unk_id].piece
        backend = Tokenizer(BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=spec.byte_fallback))
    steps = [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return backend


def _normalizer(model: Any, special: list[str], settings: Mapping[str, Any]) -> normalizers.Normalizer:
    """The file's normalisation, then its blank in front, then blanks as SentencePiece writes them.

    With `legacy`, special tokens are split off first, and each part between them gets a blank in front. Without, they
    are found in the normalised text, which has one blank at its start, and none before a special token.
    """
    spec: Any = model.normalizer_spec
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix and settings.get("add_prefix_space") is not False:
        first = "".join(f"(?!{re.escape(text)})" for text in special) if settings.get("legacy") is False else ""
        steps.append(normalizers.Replace(Regex(rf"\A{first}(?=[\s\S])"), _BLANK))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", _BLANK)])


def _special(model: Any, settings: Mapping[str, Any], name: str) -> str:
    """A special token's text: from the settings, else the file; early LLaMA folders have empty ones."""
    given = settings.get(f"{name}_token")
    text = given.get("content", "") if isinstance(given, Mapping) else str(given or "")
    number = getattr(model.trainer_spec, f"{name}_id")
    own = model.pieces[number].piece if 0 <= number < len(model.pieces) else ""
    return text or own


def _frame(backend: Tokenizer, named: Mapping[str, str], settings: Mapping[str, Any]) -> processors.PostProcessor:
    """Add the start token and, if the settings say so, the end token."""
    begin = named["bos"] if settings.get("add_bos_token") is not False else ""
    end = named["eos"] if settings.get("add_eos_token") else ""
    parts = [text for text in (begin, "$A", end) if text]
    used = [(text, backend.token_to_id(text)) for text in (begin, end) if text]
    second = [f"{part.replace('$A', '$B')}:1" for part in parts]
    return processors.TemplateProcessing(single=parts, pair=[*parts, *second], special_tokens=used)


def _add(path: Path, backend: Tokenizer, added: Mapping[int, AddedToken]) -> None:
    """Tokens beyond the file's own, at the folder's ids."""
    for number, token in sorted(added.items()):
        count = backend.get_vocab_size()
        if backend.token_to_id(token.content) is None:
            (backend.add_special_tokens if token.special else backend.add_tokens)([token])
        if backend.token_to_id(token.content) != number:
            raise ArtifactError(
                f"The folder of {str(path)!r} adds the token {token.content!r} as id {number:,}, but the file has "
                f"{count:,} tokens before it. Give a tokenizer.json, or correct added_tokens.json."
            )


def _check(path: Path, processor: "SentencePieceProcessor", backend: Tokenizer) -> None:
    for text in _SAMPLES:
        wanted, found = processor.encode(text), backend.encode(text, add_special_tokens=False).ids
        if wanted != found:
            raise ArtifactError(
                f"{str(path)!r} is a SentencePiece model of a kind that cannot be read here: {text!r} is {wanted}, "
                f"found {found}. Put the model's tokenizer.json beside it."
            )
