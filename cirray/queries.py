"""What can be asked of a gallery, as values: references, texts, what is not wanted, and which images may answer.

A query is one vector, a sum in the model's own space of vectors of norm 1:

    q = unit( sum_i w_i f(r_i, t) / sum_i w_i  -  v n )

f(r, t) is the model's composed query of a reference and the text (of the one alone where the other is not given), w_i
the weights of the references, and n the vector of what is not wanted, a text or a picture alone, with its weight v.

Shapes: D width, H and W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from cirray.core.errors import DataError
from cirray.data.places import Box
from cirray.types import Ranking, StepTimes

if TYPE_CHECKING:  # whoever asks a service needs no index
    from cirray.index.store import GalleryIndex

MAX_REFERENCES = 8
"""Most references of a query."""
MAX_EXCLUDED = 1_000
"""Most ids that a query leaves out."""
MAX_DEPTH = 10_000
"""Farthest place that an answer may have: offset + k."""
MAX_WEIGHT = 100.0


@dataclass(frozen=True)
class Reference:
    """A picture of a query: a file, encoded bytes or a Pillow image, or an id of the gallery."""

    image: str | Path | bytes | Image.Image | None = None
    gallery_id: str | None = None
    box: Box | None = None
    """x, y, width, height of the part that is meant: shares of the upright picture (0 to 1), or its pixels."""
    weight: float = 1.0
    """Its share among the references."""


@dataclass(frozen=True)
class Negative:
    """What the answers should not look like: a text, or a picture."""

    text: str | None = None
    picture: Reference | None = None
    weight: float = 0.5
    """How much of its vector is taken away, 0 to 1."""


@dataclass(frozen=True)
class Further:
    """What a query may say beyond a reference, a text and k."""

    box: Box | None = None
    """The part of the reference that is meant; see `Reference`."""
    references: tuple[Reference, ...] = ()
    """Several references, in place of one."""
    negative: Negative | None = None
    """What is not wanted."""
    exclude: tuple[str, ...] = ()
    """Ids that are not answered; unknown ones change nothing."""
    offset: int = 0
    """Answers that are passed over."""
    filter: str | None = None
    """Which images may be answered; see `cirray.index.filters`."""

    def check(self, k: int) -> None:
        """Refuse numbers out of their ranges. Raises DataError naming the number and what would be accepted."""
        if k < 1:
            raise DataError(f"k is {k}; ask for at least 1 answer.")
        if self.offset < 0 or self.offset + k > MAX_DEPTH:
            raise DataError(f"offset {self.offset} with k {k} is out of range; offset + k may be up to {MAX_DEPTH:,}.")
        if len(self.references) > MAX_REFERENCES:
            raise DataError(f"The query has {len(self.references)} references; at most {MAX_REFERENCES} are accepted.")
        if len(self.exclude) > MAX_EXCLUDED:
            raise DataError(f"The query leaves out {len(self.exclude):,} ids; at most {MAX_EXCLUDED:,} are accepted.")
        for reference in self.references:
            if not 0 < reference.weight <= MAX_WEIGHT:
                raise DataError(f"The weight {reference.weight:g} of a reference is out of range; give above 0 to 100.")
        if self.negative is not None and not 0 <= self.negative.weight <= 1:
            raise DataError(f"The weight {self.negative.weight:g} of what is not wanted is out of range; give 0 to 1.")


PLAIN = Further()
"""Nothing further."""


@dataclass(frozen=True)
class Term:
    """One vector of a query and its factor; its picture is an id of a gallery that keeps its features, or pixels."""

    factor: float = 1.0
    text: str | None = None
    gallery_id: str | None = None
    pixels_HWC: np.ndarray | None = None
    """Transformed pixels (uint8)."""
    share: float | None = None
    """The text's share, 0 to 1; None: the model's own."""
    shown: Image.Image | None = None
    """The picture itself, where a reranker may look at it."""

    @property
    def parts(self) -> str:
        """What is encoded: `both`, `text` or `picture`."""
        if self.text is None:
            return "picture"
        return "text" if self.gallery_id is None and self.pixels_HWC is None else "both"


@dataclass(frozen=True)
class ComposedQuery:
    """A checked query: its vector as a sum, and which images answer it."""

    terms: tuple[Term, ...]
    k: int = 10
    offset: int = 0
    dropped: frozenset[str] = frozenset()
    """Ids that are not answered."""
    allowed: Any = None
    """Which images of `gallery` may be answered, as `GalleryIndex.allowed` says it; None: all."""
    query_id: str = ""
    decode_ms: float = 0.0
    gallery: "GalleryIndex | None" = None
    """What is searched, also when the gallery has changed since; None: the gallery of that time."""

    def wanted(self, reranked: int = 0) -> int:
        """Answers to ask of the index, so that enough are left, also for a reranker."""
        return max(self.offset + self.k, reranked) + len(self.dropped)

    @property
    def text(self) -> str | None:
        """What is asked for in words; None: nothing."""
        return self.terms[0].text

    @property
    def reference(self) -> Image.Image | str | None:
        """Its one reference, a picture or an id of the gallery; None where it has none, or several."""
        shown = [term.shown or term.gallery_id for term in self.terms if term.factor > 0 and term.parts != "text"]
        return shown[0] if len(shown) == 1 else None

    def left(self, names: Sequence[str], scores_K: np.ndarray) -> list[tuple[str, float]]:
        """The answers that it does not leave out, with their scores."""
        pairs = zip(names, scores_K, strict=False)
        return [(name, float(score)) for name, score in pairs if name not in self.dropped]

    def ranking(self, left: Sequence[tuple[str, float]], times: StepTimes, searched: float = 1.0) -> Ranking:
        """The answers that were asked for, of those that are left; they were found in a share of the gallery."""
        kept = left[self.offset : self.offset + self.k]
        ids, scores = tuple(name for name, _ in kept), tuple(score for _, score in kept)
        return Ranking(self.query_id, ids, scores, times, searched)

    def vector(self, vectors: Sequence[np.ndarray]) -> np.ndarray:
        """The query's vector [D] (norm 1) of those of its terms. Raises DataError when nothing is left of it."""
        if len(self.terms) == 1:
            return vectors[0]
        factors_T = np.array([term.factor for term in self.terms])
        total_D = factors_T @ np.stack(vectors).astype(np.float64)
        norm = float(np.linalg.norm(total_D))
        if norm < 1e-6:
            raise DataError("Nothing is left of the query: what is not wanted takes away all of what is.")
        return (total_D / norm).astype(np.float32)


def references_of(
    image: str | Path | bytes | Image.Image | None, gallery_id: str | None, further: Further
) -> tuple[Reference, ...]:
    """The references of a query: the one, or several.

    Raises:
        DataError: for two ways of saying them, or a box without a picture.
    """
    if image is not None and gallery_id is not None:
        raise DataError("A query has one reference, an image or a gallery id; both were given.")
    if image is None and gallery_id is None:
        if further.box is not None:
            raise DataError("A box is a part of a reference; give an image or a gallery id, or leave the box out.")
        return further.references
    if further.references:
        raise DataError("Several references stand in `references`; leave the single one out, or put it there too.")
    return (Reference(image, gallery_id, further.box),)
