"""What stands around a request to a language model, so that the answer reads as its own continuation.

A model that was taught dialogues answers behind the head of its own turn. A byte-level tokenizer that puts nothing
between two texts would glue the answer to the request ("othermake"): there a line break stands between. Word-level
tokenizers and SentencePiece begin a text with a new word by themselves.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from transformers import PreTrainedTokenizerBase

from cirray.core.errors import ConfigError

FrameKind = Literal["chat", "line", "plain"]
KINDS = get_args(FrameKind)
_SLOT, _PROBE = "@@@@", "a"


@dataclass(frozen=True)
class Frame:
    """Ids before a request and after it.

    Attributes:
        kind: `chat`, a user's turn in the tokenizer's chat template; `line`, a line break after the request; `plain`,
            nothing.
        head: ids before everything, soft tokens too; a chat's opening, a line's start token.
        start: ids before the first words, behind soft tokens (InstructBLIP); only `plain` has some.
        tail: ids between request and answer.
    """

    kind: FrameKind
    head: tuple[int, ...] = ()
    start: tuple[int, ...] = ()
    tail: tuple[int, ...] = ()

    def told(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
        """The frame in words, for a manifest."""
        parts = {"head": self.head, "start": self.start, "tail": self.tail}
        return {"kind": self.kind, **{name: str(tokenizer.decode(list(ids))) for name, ids in parts.items()}}


def frame_of(tokenizer: PreTrainedTokenizerBase, kind: str, start: list[int], encodes: bool = False) -> Frame:
    """The frame for a tokenizer.

    Args:
        tokenizer: of the language model.
        kind: `auto`, or a `FrameKind`. `auto`: `chat` with a chat template, else `line` where texts would be glued.
        start: ids that the tokenizer puts before a text.
        encodes: an encoder reads the request; its decoder starts anew, so `auto` is `plain`.

    Raises:
        ConfigError: `chat` without a usable chat template.
    """
    if kind == "auto":
        templated = bool(getattr(tokenizer, "chat_template", None))
        kind = "plain" if encodes else "chat" if templated else "line" if glues(tokenizer) else "plain"
    if kind == "chat":
        return _chat(tokenizer)
    if kind == "line":
        return Frame("line", head=tuple(start), tail=tuple(_ids(tokenizer, "\n")))
    return Frame("plain", start=tuple(start))


def _chat(tokenizer: Any) -> Frame:
    try:
        turns = [{"role": "user", "content": _SLOT}]
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # noqa: BLE001 - a template is a program of the model's files
        raise ConfigError(
            f"The tokenizer has no chat template that takes one user's turn ({str(error)[:120]}). Set the frame to "
            "line or plain."
        ) from None
    head, found, tail = text.partition(_SLOT)
    if not found:
        raise ConfigError("The tokenizer's chat template leaves out the user's words. Set the frame to line or plain.")
    return Frame("chat", head=tuple(_ids(tokenizer, head)), tail=tuple(_ids(tokenizer, tail)))


def glues(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text right behind another one continues its last word, as with byte-level tokenizers."""
    twice = [*_ids(tokenizer, _PROBE), *_ids(tokenizer, _PROBE)]
    return str(tokenizer.decode(twice)).strip() == 2 * _PROBE


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
