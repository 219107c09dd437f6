"""Prompts with a slot: token ids of a text, and the positions of the image's tokens.

The slot is kept by position, with an ordinary word's id under it, because CLIP pools at the highest id or at the end
token.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from cirray.core.errors import ConfigError, DataError
from cirray.models.batch import TextBatch

SLOT, TEXT = "$", "{text}"


@dataclass(frozen=True)
class PromptBatch(TextBatch):
    """Token ids with the places of the slots: `slot_BT` is True for an image's tokens."""

    slot_BT: torch.Tensor


@dataclass(frozen=True)
class Alphabet:
    """A text encoder's tokenizer: words to ids, and its special ids."""

    words: Callable[[str], list[int]]
    begin: int
    end: int
    pad: int
    limit: int
    """Longest row in tokens."""
    fill: bool = False
    """Rows are always padded to the limit."""


def cut_prompt(prompt: str, with_text: bool) -> tuple[str, ...]:
    """A prompt as its pieces: words, `$`, `{text}`.

    Raises ConfigError unless it has one `$`, and one `{text}` if it is a query's.
    """
    pieces = tuple(piece.strip() for piece in re.split(r"(\$|\{text\})", prompt) if piece.strip())
    slots, texts = pieces.count(SLOT), pieces.count(TEXT)
    if slots != 1:
        raise ConfigError(
            f"The prompt {prompt!r} has {slots} slots; write exactly one $ where the image's token stands, e.g. "
            "'a photo of $ that {text}'."
        )
    if texts != int(with_text):
        wanted = "one {text} where the modification stands" if with_text else "no {text}: it is the image's alone"
        raise ConfigError(f"The prompt {prompt!r} has {texts} places for a text; it needs {wanted}.")
    return pieces


class PromptWriter:
    """Texts -> rows of ids around the slot."""

    def __init__(self, alphabet: Alphabet, prompt: str, query_prompt: str, tokens: int, length: int) -> None:
        """Check the prompt of an image alone (also of an empty text) and that of an image and a text.

        The slot has `tokens` positions; `length` is the longest row, special tokens included, never above the encoder's
        own limit.

        Raises ConfigError for a prompt without exactly one slot, or too long for any text.
        """
        self._alphabet, self._tokens, self._length = alphabet, tokens, min(length, alphabet.limit)
        self._plain, self._query = cut_prompt(prompt, False), cut_prompt(query_prompt, True)
        for shown, pieces in ((prompt, self._plain), (query_prompt, self._query)):
            if self._room(pieces) < int(TEXT in pieces):
                raise ConfigError(
                    f"The prompt {shown!r} with {tokens} image token(s) takes more than the {self._length} tokens of "
                    "a row. Shorten it, or lower `tokens`."
                )

    def __call__(self, texts: Sequence[str]) -> PromptBatch:
        """One row a text; `$` is taken out of it, an empty one is the image's prompt, a long one is cut at its end.

        Raises DataError for an empty list.
        """
        if not texts:
            raise DataError("There is no text to encode. Give at least one modification text.")
        return self.rows([self._row(" ".join(text.replace(SLOT, " ").split())) for text in texts])

    def plain(self, count: int) -> PromptBatch:
        """The image's own prompt, `count` times."""
        return self([""] * count)

    def template(self, phrase: str) -> list[int | None]:
        """A phrase with one or several slots as ids (None at the slots), cut at the end so that it fits."""
        pieces = [piece for piece in re.split(r"(\$)", phrase) if piece.strip()]
        row: list[int | None] = []
        for piece in pieces:
            row += [None] * self._tokens if piece == SLOT else self._alphabet.words(piece.strip())
        return [self._alphabet.begin, *row[: self._length - 2], self._alphabet.end]

    def rows(self, rows: Sequence[Sequence[int | None]]) -> PromptBatch:
        """Rows of ids (None at the slots) as one batch, padded on the right."""
        longest = self._alphabet.limit if self._alphabet.fill else max(len(row) for row in rows)
        under = self._alphabet.begin
        ids_BT = torch.full((len(rows), longest), self._alphabet.pad, dtype=torch.int64)
        mask_BT = torch.zeros((len(rows), longest), dtype=torch.int64)
        slot_BT = torch.zeros((len(rows), longest), dtype=torch.bool)
        for number, row in enumerate(rows):
            ids_BT[number, : len(row)] = torch.tensor([under if item is None else item for item in row])
            slot_BT[number, : len(row)] = torch.tensor([item is None for item in row])
            mask_BT[number, : len(row)] = 1
        return PromptBatch(ids_BT, mask_BT, slot_BT)

    def _row(self, text: str) -> list[int | None]:
        pieces = self._query if text else self._plain
        row: list[int | None] = [self._alphabet.begin]
        for piece in pieces:
            if piece == SLOT:
                row += [None] * self._tokens
            elif piece == TEXT:
                row += self._alphabet.words(text)[: self._room(pieces)]
            else:
                row += self._alphabet.words(piece)
        return [*row, self._alphabet.end]

    def _room(self, pieces: Sequence[str]) -> int:
        """Tokens that are left for the text."""
        fixed = sum(len(self._alphabet.words(piece)) for piece in pieces if piece not in (SLOT, TEXT))
        return self._length - 2 - self._tokens - fixed
