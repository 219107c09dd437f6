"""What is wrong with a data set on disk: checks of images and annotations, and the report."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cirray.core.errors import ArtifactError, ConfigError, DataError, reason_of, unknown_name
from cirray.core.log import printable
from cirray.core.texts import BROKEN
from cirray.data.benchmark import CirDataset
from cirray.data.config import ImageLimits
from cirray.data.images import (
    ForeignError,
    LimitError,
    MissingImageError,
    crop_bounds,
    decode,
    load_small,
    picture_digest,
    read_place,
)
from cirray.data.kinds import HEAD_BYTES, READ, sniff, split_suffix
from cirray.data.places import Box, Place
from cirray.data.quirks import BLANK, SAME, SIZES, Sizes
from cirray.types import Query

IMAGE_CODES = {
    "missing": "images are missing on disk",
    "unreadable": "images cannot be read",
    "empty": "images have 0 bytes",
    "undecodable": "images are of no known format",
    "truncated": "images are truncated or damaged",
    "limits": "images are out of the limits on size or shape",
    "box_outside": "crops lie outside their image",
    "metadata": "images have damaged metadata, which is left out; their pixels are read",
    "wrong_extension": "images have a suffix of another format",
    "duplicate": "images have the content of another one",
}
"""Code of an image finding -> its meaning; all but the last three make an image unusable."""
NOTES = ("metadata",)
"""Codes of images that are still read correctly."""
CODES = (*IMAGE_CODES, "absent_ids", "outside_gallery", "blank", "broken_text", "same_image", "query_count",
         "gallery_size", "annotations")  # fmt: skip
"""Codes of everything that may be a problem."""
USABLE = ("", "metadata", "wrong_extension")
_EXAMPLES = 3
_BROKEN = "U+FFFD for what could not be read"


@dataclass(frozen=True)
class Finding:
    """One kind of oddity. A `problem` counts for the exit status; a `note` is known or harmless."""

    code: str
    level: str
    words: str
    items: tuple[str, ...] = ()

    def line(self) -> str:
        """One line for people."""
        examples = f", e.g. {', '.join(map(printable, self.items[:_EXAMPLES]))}" if self.items else ""
        return f"{self.level}: {f'{len(self.items):,} ' if self.items else ''}{self.words}{examples}  [{self.code}]"


@dataclass(frozen=True)
class GallerySize:
    """Images of one gallery: listed by the files, usable on disk, and as published (None where that is unknown)."""

    name: str
    listed: int
    usable: int | None
    official: int | None

    def line(self) -> str:
        """One line for people."""
        usable = "not checked" if self.usable is None else f"{self.usable:,} usable"
        official = "published size unknown" if self.official is None else f"{self.official:,} published"
        return f"gallery {self.name}: {self.listed:,} listed, {usable}, {official}"


@dataclass(frozen=True)
class DoctorReport:
    """Everything found. `exit_status`: 0 clean, 1 there are problems."""

    dataset: str
    counts: dict[str, int]
    galleries: tuple[GallerySize, ...]
    findings: tuple[Finding, ...]
    digest: str = ""
    """Digest of all images' ids and contents; empty when they were not read."""
    as_json: bool = field(default=False, compare=False)

    @property
    def exit_status(self) -> int:
        """0 without problems, else 1."""
        return int(any(finding.level == "problem" for finding in self.findings))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, every item of every finding included."""
        values = asdict(self)
        del values["as_json"]
        return {**values, "clean": self.exit_status == 0}

    def text(self) -> str:
        """Lines for people: galleries, problems, notes, verdict."""
        order = sorted(self.findings, key=lambda finding: finding.level != "problem")
        counts = ", ".join(f"{count:,} {name}" for name, count in self.counts.items())
        verdict = "clean" if not self.exit_status else f"{sum(f.level == 'problem' for f in order)} kinds of problems"
        lines = [f"{self.dataset}: {counts}", *(gallery.line() for gallery in self.galleries)]
        return "\n".join([*lines, *(finding.line() for finding in order), verdict])


@dataclass(frozen=True)
class ImageCheck:
    """The check of one image file: `code` is empty for a good one, `digest` is of its bytes."""

    code: str
    reason: str = ""
    bytes: int = 0
    digest: str = ""
    format: str = ""
    width: int = 0
    height: int = 0


def check_image(place: Place, limits: ImageLimits) -> ImageCheck:
    """Read, hash and decode one whole image (crops: `check_box`); faults are in the result, never raised."""
    try:
        data = read_place(place, limits)
    except MissingImageError as error:
        return ImageCheck("missing", reason_of(error))
    except (DataError, ArtifactError) as error:
        return ImageCheck("unreadable", reason_of(error))
    digest = picture_digest(data)
    if not data:
        return ImageCheck("empty", "0 bytes")
    try:
        found = decode(data, limits, repr(place.uri), load_small)
    except ForeignError as error:
        return ImageCheck("undecodable", reason_of(error), len(data), digest)
    except LimitError as error:
        return ImageCheck("limits", str(error), len(data), digest, error.kind, *error.size)
    except DataError as error:
        return ImageCheck("truncated", reason_of(error), len(data), digest, sniff(data[:HEAD_BYTES]))
    known = (len(data), digest, found.kind, *found.size)
    suffix = split_suffix(place.uri)[1].lower()
    if found.repaired:
        return ImageCheck("metadata", found.repaired, *known)
    if place.span is None and suffix and suffix not in READ[found.kind]:
        return ImageCheck("wrong_extension", f"{found.kind} named {suffix}", *known)
    return ImageCheck("", "", *known)


def check_box(check: ImageCheck, box: Box | None) -> ImageCheck:
    """The check of a crop, from that of its whole image."""
    if box is None or check.code not in USABLE:
        return check
    try:
        crop_bounds((check.width, check.height), box)
    except ValueError as error:
        return replace(check, code="box_outside", reason=reason_of(error))
    return check


def image_findings(checks: Mapping[str, ImageCheck], files: Mapping[str, str]) -> list[Finding]:
    """Findings over all images. `files`: image id -> file (and part of it); crops of one file are no duplicates of each
    other.
    """
    by_code: dict[str, list[str]] = defaultdict(list)
    same: dict[str, dict[str, str]] = defaultdict(dict)
    for image, check in checks.items():
        if check.code:
            by_code[check.code].append(image)
        if check.bytes:
            same[check.digest].setdefault(files[image], image)
    by_code["duplicate"] = ["=".join(sorted(group.values())) for group in same.values() if len(group) > 1]
    return [
        Finding(code, "note" if code in NOTES else "problem", words, tuple(by_code[code]))
        for code, words in IMAGE_CODES.items()
        if by_code[code]
    ]


def annotation_findings(dataset: CirDataset, fmt: str, split: str) -> list[Finding]:
    """Findings in ids and texts of one split; oddities that the published files have are notes."""
    queries, place = dataset.queries, f" in {split}"
    found = [
        Finding("absent_ids", "problem", f"ids are named by annotations{place} but are no images", _absent(dataset)),
        Finding("outside_gallery", "problem", f"queries{place} have a target outside their gallery", _outside(dataset)),
        _counted("blank", "texts are blank", place, _blank(queries, fmt), BLANK.get((fmt, split), 0)),
        Finding("broken_text", "problem", f"texts{place} hold {_BROKEN}", _broken(queries)),
        Finding("broken_text", "problem", f"training texts hold {_BROKEN}", _broken_triplets(dataset)),
        _counted("same_image", "queries have their reference as a target", place, _same(queries), SAME.get(fmt, 0)),
    ]
    notes = {
        "non_ascii": ("texts are not ASCII", [q.query_id for q in queries if not q.modification.isascii()]),
        "double_space": ("texts hold double spaces", [q.query_id for q in queries if "  " in q.modification]),
        "repeated": ("queries repeat another's reference, text and targets", _repeated(queries)),
        "soft": ("queries have a target that is not among their graded ones", _ungraded(queries)),
    }
    found += [Finding(code, "note", words + place, tuple(items)) for code, (words, items) in notes.items()]
    found = [finding for finding in found if finding.items]
    return found + [Finding("reader", "note", note) for note in dataset.notes]


def size_findings(dataset: CirDataset, fmt: str, split: str) -> list[Finding]:
    """Problems where the number of queries or a gallery is not as published."""
    official = SIZES.get((fmt, split))
    if official is None:
        return []
    found = []
    if official.queries is not None and official.queries != len(dataset.queries):
        words = f"{split} has {len(dataset.queries):,} queries; {official.queries:,} are published"
        found.append(Finding("query_count", "problem", words))
    for name, ids in _galleries(dataset, official).items():
        if official.galleries.get(name) not in (None, len(ids)):
            words = f"gallery {name} of {split} lists {len(ids):,} images; {official.galleries[name]:,} are published"
            found.append(Finding("gallery_size", "problem", words))
    return found


def gallery_sizes(
    dataset: CirDataset, fmt: str, split: str, checks: Mapping[str, ImageCheck] | None
) -> list[GallerySize]:
    """Listed, usable and published size of the split's galleries (GeneCIS: of their union)."""
    official = SIZES.get((fmt, split)) or Sizes()
    sizes = []
    for name, ids in _galleries(dataset, official).items():
        usable = None
        if checks is not None:
            usable = sum(image in checks and checks[image].code in USABLE for image in ids)
        label = split if name == "" else f"{split}/{name}"
        sizes.append(GallerySize(label, len(ids), usable, official.galleries.get(name)))
    return sizes


def with_accepted(findings: Iterable[Finding], accept: Sequence[str]) -> tuple[Finding, ...]:
    """Findings with the accepted codes turned from problems into notes, each once.

    Raises ConfigError for a code that no finding has.
    """
    for code in accept:
        if code not in CODES:
            raise ConfigError(unknown_name("code of findings", code, CODES))
    findings = dict.fromkeys(findings)
    return tuple(Finding(f.code, "note" if f.code in accept else f.level, f.words, f.items) for f in findings)


def _galleries(dataset: CirDataset, official: Sizes) -> dict[str, Sequence[str]]:
    few = 1 < len(dataset.galleries) <= 10 or (dataset.galleries and set(dataset.galleries) <= set(official.galleries))
    return dict(dataset.galleries) if few else {"": dataset.gallery_ids}


def _absent(dataset: CirDataset) -> tuple[str, ...]:
    named: dict[str, None] = {}
    for query in dataset.queries:
        named |= dict.fromkeys((query.reference_id, *query.target_ids, *query.subset, *dict(query.soft)))
    for row in dataset.triplets:
        named |= dict.fromkeys((row.reference_id, row.target_id))
    for ids in (dataset.gallery_ids, dataset.pool_ids, *dataset.galleries.values()):
        named |= dict.fromkeys(ids)
    return tuple(image for image in named if image not in dataset.images)


def _outside(dataset: CirDataset) -> tuple[str, ...]:
    galleries = {name: frozenset(ids) for name, ids in dataset.galleries.items()} | {"": frozenset(dataset.gallery_ids)}
    if not any(galleries.values()):
        return ()
    return tuple(
        query.query_id for query in dataset.queries if not set(query.target_ids) <= galleries.get(query.gallery, set())
    )


def _blank(queries: Sequence[Query], fmt: str) -> list[str]:
    """Blank texts, and joined captions of Fashion IQ that lack one side."""
    found = [q for q in queries if not q.modification.strip()]
    if fmt == "fashioniq":
        found += [q for q in queries if q.modification.startswith(" and ") or q.modification.endswith(" and ")]
    return [query.query_id for query in found]


def _broken(queries: Sequence[Query]) -> tuple[str, ...]:
    return tuple(query.query_id for query in queries if BROKEN in query.modification)


def _broken_triplets(dataset: CirDataset) -> tuple[str, ...]:
    texts = {row.triplet_id: row.modification for row in dataset.split("train")} | dict(dataset.captions)
    return tuple(name for name, text in texts.items() if BROKEN in text)


def _same(queries: Sequence[Query]) -> list[str]:
    return [q.query_id for q in queries if q.reference_id in q.target_ids]


def _repeated(queries: Sequence[Query]) -> list[str]:
    seen = Counter((q.reference_id, q.modification, q.target_ids, q.gallery) for q in queries)
    return [q.query_id for q in queries if seen[(q.reference_id, q.modification, q.target_ids, q.gallery)] > 1]


def _ungraded(queries: Sequence[Query]) -> list[str]:
    return [q.query_id for q in queries if q.soft and not set(q.target_ids) <= set(dict(q.soft))]


def _counted(code: str, words: str, place: str, items: Sequence[str], known: int) -> Finding:
    level = "note" if len(items) == known else "problem"
    return Finding(code, level, words + place + (" (as published)" if level == "note" else ""), tuple(items))
