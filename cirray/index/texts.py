"""The data set's own texts about gallery pictures, kept with an index for the page to suggest."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

TEXTS = "texts.json"
MAX_TEXTS = 4
"""Most texts kept of one picture."""

Texts = Mapping[str, tuple[str, ...]]


def texts_by_reference(asked: Iterable[tuple[str, str]], ids: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The first different texts of every gallery picture, of (reference id, text) in the queries' order."""
    found: dict[str, dict[str, None]] = {}
    gallery = set(ids)
    for reference, text in asked:
        if reference in gallery and len(found.setdefault(reference, {})) < MAX_TEXTS:
            found[reference][text] = None
    return {name: tuple(texts) for name, texts in found.items()}


def write_texts(folder: Path, texts: Texts) -> list[str]:
    """Write the texts into an index folder; returns the names of the files written (none without texts)."""
    if not texts:
        return []
    (folder / TEXTS).write_text(json.dumps(texts), encoding="utf-8")
    return [TEXTS]


def open_texts(folder: Path, names: Sequence[str]) -> Texts:
    """The texts of an index; empty when it was built without."""
    if TEXTS not in names:
        return {}
    return parsed_texts((folder / TEXTS).read_bytes())


def parsed_texts(data: bytes) -> Texts:
    """Texts as they are kept."""
    return {name: tuple(texts) for name, texts in json.loads(data).items()}
