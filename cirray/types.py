"""Words of the field as values. No torch, no ray.

Shape legend used all over the package: B batch, N candidates (gallery), Q query tokens, P image patches (patch
tokens of the vision tower), T text tokens, D width, H image height, W image width, K top-k, M rows of a bank.
*reference* + *modification* = *query*; *target*; *gallery*; *pair*; *triplet*; *ranking*.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

MAX_TEXT = 512
"""Most characters of a modification text."""


def stable_id(*parts: object) -> str:
    """Deterministic 16-hex-digit id of its parts (same on every machine and run)."""
    text = "\x1f".join(str(part) for part in parts)
    return hashlib.blake2b(text.encode("utf-8"), digest_size=8).hexdigest()


def stable_id_of(parts: Iterable[object]) -> str:
    """`stable_id` of many parts, which need not be in memory together."""
    found, rest, mark = hashlib.blake2b(digest_size=8), iter(parts), b""
    while some := list(islice(rest, 4096)):
        found.update(mark + "\x1f".join(map(str, some)).encode("utf-8"))
        mark = b"\x1f"
    return found.hexdigest()


def part_name(number: int) -> str:
    """File stem of a part of an artifact: `part-00012`."""
    return f"part-{number:05d}"


@dataclass(frozen=True)
class Pair:
    """Ordered image pair waiting for a modification text."""

    pair_id: str
    reference_id: str
    target_id: str
    group_id: str = ""
    score: float = 0.0
    rank: int = 0


@dataclass(frozen=True)
class Triplet:
    """(reference, modification, target) with its provenance. `weight` >= 0; `edit` is an optional tag for reports."""

    triplet_id: str
    reference_id: str
    target_id: str
    modification: str
    reverse_modification: str | None = None
    split: str = "train"
    source: str = "human"
    group_id: str = ""
    weight: float = 1.0
    edit: str = ""
    positive_ids: tuple[str, ...] = ()
    """Further images that the text leads to as well; they are never its negatives."""
    negative_ids: tuple[str, ...] = ()
    """Images that look right and are wrong (hard negatives)."""

    @property
    def images(self) -> tuple[str, ...]:
        """The images that training on it reads: reference, target, hard negatives."""
        return (self.reference_id, self.target_id, *self.negative_ids)


@dataclass(frozen=True)
class Query:
    """Evaluation query; `target_ids` holds one id for hit-rate benchmarks and several where a benchmark says so."""

    query_id: str
    reference_id: str
    modification: str
    target_ids: tuple[str, ...]
    edit: str = ""
    gallery: str = ""
    """Name of the gallery it searches (FashionIQ: its category; GeneCIS: its own); empty: the data set's only one."""
    variants: tuple[str, ...] = ()
    """Texts whose query vectors are averaged, in place of `modification`'s alone (SEARLE on FashionIQ)."""
    subset: tuple[str, ...] = ()
    """Images among which the target is also ranked (CIRR: the similar images, reference included)."""
    soft: tuple[tuple[str, float], ...] = ()
    """Graded targets and their labels (CIRR's soft targets)."""
    tags: tuple[str, ...] = ()
    """Further groups it is reported under (CIRCO's semantic aspects)."""


@dataclass(frozen=True)
class Generation:
    """One generated text: exactly one of `text` and `error` is set; `logprob` is the mean per token, <= 0."""

    pair_id: str
    text: str | None
    reverse_text: str | None = None
    logprob: float = 0.0
    error: str | None = None
    edit: str = ""
    """Kind of edit, where the generator tells it."""
    confidence: float | None = None
    """The generator's own, 0 to 1, where it tells it."""
    tokens: tuple[int, int] = (0, 0)
    """Tokens read and written, where a server counts them."""
    more: tuple["Generation", ...] = ()
    """Further texts of the pair, where the generator was asked for several."""


@dataclass(frozen=True)
class Composition:
    """How a model makes one query of picture and text."""

    name: str
    """Name of the fusion, or of the kind of model."""
    weight: float | None = None
    """The text's usual share, from 0 (picture alone) to 1 (text alone), which a query may change; None: it cannot."""
    choices: tuple[str, ...] = ()
    """Compositions without training that the model knows; empty: it was trained for the one it has."""


@dataclass(frozen=True)
class StepTimes:
    """Milliseconds of the steps of a search. Queries answered together share all but `decode`: a step runs once."""

    decode: float = 0.0
    """Reading and transforming the reference picture."""
    image: float = 0.0
    """Vision tower and the reference's part of the model; almost nothing if the state is kept."""
    text: float = 0.0
    """Text encoder and fusion: reference and text to query vector."""
    rank: float = 0.0
    """Search in the index."""
    rerank: float = 0.0
    """Scoring the first answers again, where a reranker does."""


@dataclass(frozen=True)
class Ranking:
    """Ids of one query's answers, best first, with their scores."""

    query_id: str
    ids: tuple[str, ...]
    scores: tuple[float, ...] = field(default=())
    times: StepTimes | None = field(default=None, compare=False)
    searched: float = 1.0
    """Share of the gallery's images among which they were found."""


def images_of(triplets: Iterable[Triplet]) -> set[str]:
    """References, targets and hard negatives."""
    return {image for row in triplets for image in row.images}
