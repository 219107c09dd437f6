"""The engine interface: questions of pictures and text in, one reply each out, failures as values. No torch."""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, TypeVar

from cirray.core.config import Config
from cirray.types import stable_id

SettingsT = TypeVar("SettingsT", bound=Config, contravariant=True)
Defect = Callable[[str], str]
"""What is wrong with an answer; empty: nothing. An answer with a defect is asked for again."""
DRAWN = 0.5
"""Least temperature of further tries after an answer that was no good: the likeliest one would come again."""


@dataclass(frozen=True)
class Shot:
    """A picture in a question: its id, and the bytes of a picture file."""

    picture_id: str
    data: bytes

    @cached_property
    def digest(self) -> str:
        """Of the bytes."""
        return hashlib.blake2b(self.data, digest_size=16).hexdigest()


@dataclass(frozen=True)
class Question:
    """What is asked. `parts` are read in their order; `schema` is the JSON schema of the answer, if it has one."""

    parts: tuple[str | Shot, ...]
    schema: Mapping[str, Any] | None = None

    @property
    def pictures(self) -> int:
        """How many pictures it shows."""
        return sum(isinstance(part, Shot) for part in self.parts)

    def content(self, picture_ids: bool) -> str | list[dict[str, Any]]:
        """The question as a message of OpenAI's chat completions holds it. With `picture_ids` every picture says its
        digest, by which an engine can use its encoder's work again.
        """
        if all(isinstance(part, str) for part in self.parts):
            return "".join(map(str, self.parts))
        return [_part(part, picture_ids) for part in self.parts]

    def key(self, engine: str) -> str:
        """Digest of the question as put to an engine of this digest: another picture or word is another question."""
        said = (part.digest if isinstance(part, Shot) else f"say {part}" for part in self.parts)
        return stable_id("question", engine, *said)


@dataclass(frozen=True)
class Reply:
    """An answer, or why there is none: exactly one of `text` and `error` says something. Tokens are 0 if not told."""

    text: str = ""
    error: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    cut: int = 0
    """Limit of tokens at which the answer was cut; 0: it ended, or nobody tells."""
    said: str = ""
    """The text that has the defect that `error` tells."""

    def checked(self, defect: Defect) -> "Reply":
        """The reply, or one that says what is wrong with its text."""
        fault = "" if self.error else defect(self.text)
        told = f", and was cut at max_tokens={self.cut}" if self.cut else ""
        error = f"the answer {fault}: {self.text[:80]!r}{told}"
        return replace(self, text="", said=self.text, error=error) if fault else self


@dataclass
class Tries:
    """What the answers to one question have cost, over all its tries."""

    read: int = 0
    written: int = 0
    least: float = 0.0
    """Least temperature of the next try."""

    def settled(self, reply: Reply, defect: Defect, tries: int, last: bool) -> Reply | None:
        """The reply that stands, with the tokens of all tries; None: its text has a defect, so it is asked for again.

        Args:
            reply: the engine's.
            defect: what is wrong with a text.
            tries: times that a question is asked.
            last: whether this was the last of them.
        """
        self.read, self.written = self.read + reply.tokens_in, self.written + reply.tokens_out
        checked = reply.checked(defect)
        wrong = bool(checked.error) and not reply.error
        self.least = DRAWN
        if wrong and not last:
            return None
        told = f"{checked.error} ({tries} tries)" if wrong else checked.error
        return replace(checked, error=told, tokens_in=self.read, tokens_out=self.written)


class Engine(Protocol):
    """Answers questions."""

    @property
    def digest(self) -> str:
        """Identifies the model and how it answers."""

    def ask(self, questions: Sequence[Question], defect: Defect) -> list[Reply]:
        """One reply a question, in order.

        Raises:
            GenerationError: nothing can be asked now: nobody answers, a wrong key, an unknown model.
        """


class MakeEngine(Protocol[SettingsT]):
    """Makes an engine, ready to answer."""

    def __call__(self, settings: SettingsT, device: str) -> Engine:
        """By its settings, of the class that it is registered with.

        Raises:
            ArtifactError: when there is no model to load.
            GenerationError: when nobody answers.
        """


def _part(part: str | Shot, with_id: bool) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = "png" if part.data.startswith(b"\x89PNG") else "jpeg"
    url = f"data:image/{kind};base64,{base64.b64encode(part.data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}, **({"uuid": part.digest} if with_id else {})}
