"""WebDataset tar shards: an index of keys and byte ranges. Shards are never unpacked.

Members of one key are next to each other; the key is the name up to its first dot. A sample is a picture (`key.jpg`,
with `key.txt` or `key.json` as caption), or a triplet: `key.reference.jpg`, `key.target.jpg` and the text in `key.txt`
or `key.json` (`modification`), or only `key.json` with `reference`, `target` and `modification` naming pictures of the
shards by their keys. Any other picture of a key (`22.05.jpg` beside `22.06.jpg`) is a sample of its own, with
`22.05.txt` as caption; pictures of a key that differ in their suffix alone keep it.
"""

import fnmatch
import posixpath
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from cirray.core import storage
from cirray.core.errors import ArtifactError, DataError
from cirray.core.ids import Ids
from cirray.core.refusals import is_away, refused
from cirray.core.texts import parse_json
from cirray.data.annotations import blank_note
from cirray.data.benchmark import CirDataset, ImageTable, Protocol, count_note
from cirray.data.config import WebDatasetConfig
from cirray.data.kinds import HEAD_BYTES, SUFFIXES, is_foreign, sniff
from cirray.data.listing import name_text, picture_ids
from cirray.data.names import NameFinder
from cirray.data.places import Span
from cirray.data.readers import READERS
from cirray.data.tables import is_null
from cirray.types import Query, Triplet

ROLES = {"reference": "reference", "ref": "reference", "source": "reference", "candidate": "reference",
         "target": "target"}  # fmt: skip
"""Part of a member's name between key and suffix, for a triplet's pictures."""
_TEXT_BYTES = 2**20
_LABELS = ("cls", "cls2", "id", "index", "__key__")
"""Suffixes of numbers and words, which are never pictures."""


@dataclass
class Sample:
    """Content of one key: places of its pictures by role ("" for a single picture), texts and values."""

    key: str
    shard: str
    pictures: dict[str, Span] = field(default_factory=dict)
    text: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    other: list[str] = field(default_factory=list)

    def word(self, name: str) -> str:
        """A text of the JSON member, or nothing where it has none or null.

        Raises DataError when it is something else than a text or a number.
        """
        value = self.values.get(name)
        if is_null(value):
            return ""
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise DataError(f"Sample {self.key!r} of {self.shard!r} has {value!r} as {name!r}, which is not a text.")
        return str(value)

    @property
    def is_told(self) -> bool:
        """Whether there is any text."""
        return bool(self.text or self.values)

    @property
    def modification(self) -> str:
        """Text of a triplet."""
        return self.word("modification") or self.text


@dataclass
class _Group:
    """Members of one key: its pictures (name, part between key and suffix, bytes) and its texts."""

    key: str
    shard: str
    pictures: list[tuple[str, str, Span]] = field(default_factory=list)
    told: dict[str, Sample] = field(default_factory=dict)

    def about(self, role: str = "") -> Sample:
        """The sample that texts with this part of the name belong to."""
        return self.told.setdefault(role, Sample(f"{self.key}.{role}" if role else self.key, self.shard))

    def samples(self) -> Iterator[Sample]:
        """The sample of the key, then one for each further picture.

        Raises DataError when two pictures are the same part of a triplet.
        """
        main, single = self.about(), [row for row in self.pictures if row[1] not in ROLES]
        for name, role, span in self.pictures:
            if role in ROLES and ROLES[role] in main.pictures:
                raise DataError(
                    f"Key {self.key!r} of {self.shard!r} has two pictures as {ROLES[role]}: {name!r} is one."
                )
            if role in ROLES:
                main.pictures[ROLES[role]] = span
        if len(single) == 1 and single[0][1] == "":
            main.pictures[""] = single.pop()[2]
        elif main.word("reference") and sum(role == "" for _, role, _ in single) > 1:
            raise DataError(f"Key {self.key!r} of {self.shard!r} names a reference for two pictures; keep one of them.")
        of_singles = [
            Sample(image, self.shard, {"": span}, self.about(role).text, self.about(role).values)
            for image, (_, role, span) in zip(picture_ids([row[0] for row in single]), single, strict=True)
        ]
        told_by_others = any(role == "" for _, role, _ in single)
        if main.pictures or (main.is_told and not told_by_others) or not of_singles:
            yield main
        yield from of_singles


@dataclass
class _Found:
    """What has been read so far."""

    paths: dict[str, str] = field(default_factory=dict)
    spans: dict[str, Span] = field(default_factory=dict)
    singles: list[str] = field(default_factory=list)
    captions: dict[str, str] = field(default_factory=dict)
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def add(self, image_id: str, sample: Sample, role: str) -> str:
        """Remember a picture by its id, once."""
        if image_id in self.paths:
            raise DataError(
                f"Image {image_id!r} of {sample.shard!r} is in {self.paths[image_id]!r} already; keys must be unique "
                "over all shards."
            )
        self.paths[image_id], self.spans[image_id] = sample.shard, sample.pictures[role]
        return image_id


@READERS.register("webdataset")
def read_webdataset(config: WebDatasetConfig) -> CirDataset:
    """Index all shards; only headers and texts are read, so memory grows with the number of samples alone.

    Raises DataError: no shard, a compressed or damaged one, a key used twice, or a triplet of unknown pictures.
    """
    found = _Found()
    for shard in list_shards(config):
        for sample in read_samples(shard):
            _file(sample, found)
    triplets, queries = _rows(config, found)
    singles: Sequence[str] = Ids(found.singles)
    gallery = singles if config.part == "gallery" else ()
    if queries and not gallery:
        gallery = tuple(dict.fromkeys(image for q in queries for image in (*q.target_ids, q.reference_id)))
    name = posixpath.basename(storage.without_query(config.root).rstrip("/")) or "webdataset"
    return CirDataset(
        name=name,
        images=ImageTable(found.paths, spans=found.spans),
        protocol=Protocol(name, gallery_rule=f"{len(gallery):,} images of the shards",
                          reference_rule=config.reference_rule, ks=config.ks),
        triplets=triplets,
        pool_ids=singles if config.part == "pool" else (),
        queries=queries,
        gallery_ids=gallery,
        captions=found.captions,
        notes=(
            *count_note("samples left out (no picture, no text, or one image twice)", found.left),
            *blank_note(queries),
        ),
    )  # fmt: skip


def list_shards(config: WebDatasetConfig) -> list[str]:
    """Paths or URIs of the shards, sorted. Raises DataError when there is none."""
    try:
        names = [name for name in storage.list_files(config.root) if fnmatch.fnmatch(name, config.shards)]
    except (ArtifactError, OSError) as error:
        raise DataError(f"Shards below {config.root!r} cannot be listed: {error}") from None
    if not names:
        raise DataError(
            f"No file {config.shards!r} below {config.root!r}; set `webdataset.root` or `webdataset.shards`."
        )
    return [storage.join(config.root, name) for name in names]


def read_samples(shard: str) -> Iterator[Sample]:
    """Samples of one shard in its order, one at a time.

    Raises DataError naming a shard that is compressed, damaged or cannot be read.
    """
    filesystem, path = storage.resolve(shard)
    group: _Group | None = None
    try:
        with filesystem.open_input_file(path) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            while (member := tar.next()) is not None:
                # Tarfile keeps every header it has seen; an index of millions must not hold them too.
                tar.members = []  # type: ignore[attr-defined]
                name = name_text(member.name.removeprefix("./"))
                key, _, kind = posixpath.basename(name).partition(".")
                if not member.isfile() or not key:
                    continue
                key = posixpath.join(posixpath.dirname(name), key)
                if group is not None and group.key != key:
                    yield from group.samples()
                    group = None
                group = group or _Group(key, shard)
                _add_member(group, name, kind, member, tar)
    except tarfile.TarError as error:
        raise DataError(
            f"Shard {shard!r} is compressed, damaged or no tar file ({error}); write it as a plain .tar."
        ) from None
    except OSError as error:
        if is_away(error):
            raise refused(shard, "read", error) from None
        raise DataError(f"Shard {shard!r} cannot be read: {' '.join(str(error).split())[:200]}.") from None
    if group is not None:
        yield from group.samples()


def _add_member(group: _Group, name: str, kind: str, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
    role, _, suffix = kind.rpartition(".")
    sample, is_picture = group.about(), f".{suffix.lower()}" in SUFFIXES
    if is_picture or (not is_foreign(f"x.{suffix}") and kind.lower() not in _LABELS and _holds_picture(member, tar)):
        role = role if is_picture else kind
        role = role.lower() if role.lower() in ROLES else role
        group.pictures.append((name, role, (member.offset_data, member.size)))
    elif suffix.lower() == "txt":
        group.about(role).text = _text(sample, member, tar).strip()
    elif suffix.lower() == "json":
        try:
            values = parse_json(_bytes(sample, member, tar))
        except ValueError as error:
            raise DataError(f"{member.name!r} in {sample.shard!r} is not JSON ({error}).") from None
        if not isinstance(values, dict):
            raise DataError(f"{member.name!r} in {sample.shard!r} is not a JSON object.")
        group.about(role).values = values
    else:
        sample.other.append(kind)


def _holds_picture(member: tarfile.TarInfo, tar: tarfile.TarFile) -> bool:
    """Whether a member's first bytes are those of a picture."""
    stream = tar.extractfile(member)
    return bool(stream and sniff(stream.read(HEAD_BYTES)))


def _bytes(sample: Sample, member: tarfile.TarInfo, tar: tarfile.TarFile) -> bytes:
    if member.size > _TEXT_BYTES:
        raise DataError(
            f"{member.name!r} in {sample.shard!r} has {member.size:,} bytes; a text is at most {_TEXT_BYTES:,}."
        )
    stream = tar.extractfile(member)
    return stream.read() if stream else b""


def _text(sample: Sample, member: tarfile.TarInfo, tar: tarfile.TarFile) -> str:
    try:
        return _bytes(sample, member, tar).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{member.name!r} in {sample.shard!r} is not UTF-8 text ({error.reason}).") from None


def _file(sample: Sample, found: _Found) -> None:
    """Sort a sample: triplet by pictures, triplet by names, single picture, or left out."""
    if {"reference", "target"} <= set(sample.pictures):
        reference, target = (
            found.add(sample.word(f"{role}_id") or f"{sample.key}/{role}", sample, role)
            for role in ("reference", "target")
        )
        found.rows.append((sample.key, reference, target, sample.modification))
    elif "" in sample.pictures:
        image = found.add(sample.key, sample, "")
        found.singles.append(image)
        if sample.word("reference"):
            found.rows.append((sample.key, sample.word("reference"), image, sample.modification))
        elif sample.word("caption") or sample.text:
            found.captions[image] = sample.word("caption") or sample.text
    elif sample.word("reference") and sample.word("target"):
        found.rows.append((sample.key, sample.word("reference"), sample.word("target"), sample.modification))
    else:
        found.left.append(sample.key)


def _rows(config: WebDatasetConfig, found: _Found) -> tuple[tuple[Triplet, ...], tuple[Query, ...]]:
    triplets, queries = [], []
    finder = NameFinder({image: image for image in found.paths})
    for key, *named, text in found.rows:
        reference, target = (_named(finder, key, image, config.root) for image in named)
        if config.triplets == "query":
            queries.append(Query(key, reference, text, (target,)))
        elif text and reference != target:
            triplets.append(Triplet(f"wds-{key}", reference, target, text, split=config.triplets, group_id=reference))
        else:
            found.left.append(key)
    return tuple(triplets), tuple(queries)


def _named(finder: NameFinder, key: str, name: str, root: str) -> str:
    found = finder.find(name)
    if len(found) != 1:
        what = f"may be {found[0]!r} or {found[1]!r}" if found else f"is in no shard of {root!r}"
        raise DataError(f"Sample {key!r} names the image {name!r}, which {what}.")
    return found[0]
