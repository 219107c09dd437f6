"""Fashion IQ (docs/PAPERS.md#fashion-iq) in its published layout: three categories, two captions for every triplet."""

from collections.abc import Iterator, Sequence

from cirray.core.errors import DataError
from cirray.data.annotations import Folders, Record, complete, image_paths, null_note
from cirray.data.benchmark import CirDataset, ImageTable, Protocol, count_note
from cirray.data.caption_rules import RULES, four_ways
from cirray.data.config import FashionIQConfig
from cirray.data.readers import READERS
from cirray.types import Query, Triplet

CATEGORIES = ("dress", "shirt", "toptee")
_TRIPLETS = ("train", "val")
_IMAGES = ("candidate", "target")


@READERS.register("fashioniq")
def read_fashioniq(config: FashionIQConfig) -> CirDataset:
    """Read one category or all three; no image is opened, and images may be missing.

    Query ids are `<category>-<split>-<row>` (a suffix where one triplet gives several queries), image ids ASINs. A
    query's `gallery` is its category. Captions follow `config.captions`; empty ones get no special case, but
    `each_alone` drops them and says how many. Train and val triplets are read where their files are.

    The protocol: recall in each category's own gallery, unweighted means over categories.

    Raises DataError: a file of the chosen split is missing or an entry is wrong.
    """
    files = Folders(config.root, "fashioniq")
    categories = CATEGORIES if config.category == "all" else (config.category,)
    records = {name: _records(files, name, config.split) for name in categories}
    galleries = {name: _gallery(config, files, name, records[name]) for name in categories}
    queries = tuple(query for name in categories for query in _queries(config, name, records[name]))
    triplets, made = _triplets(config, files, categories)
    pool = _lists(files, categories, "train")
    gallery = tuple(dict.fromkeys(image for ids in galleries.values() for image in ids))
    named = {image for q in queries for image in (q.reference_id, *q.target_ids)}
    named |= {image for t in triplets for image in (t.reference_id, t.target_id)}
    listed = {*pool, *gallery, *_lists(files, categories, "val"), *_lists(files, categories, config.split)}
    ids = tuple(dict.fromkeys((*pool, *gallery, *sorted(named))))
    guarded = frozenset(_lists(files, CATEGORIES, "val")) | frozenset(_lists(files, CATEGORIES, "test"))
    shared = [t.triplet_id for t in triplets if t.split == "train" and {t.reference_id, t.target_id} & guarded]
    notes = (
        *made,
        *count_note("train triplets hold images of another category's val or test split, as published", shared),
    )
    return CirDataset(
        name="fashioniq",
        images=ImageTable(image_paths(files.images(config.images), ids)),
        protocol=_protocol(config, {name: len(found) for name, found in galleries.items()}),
        triplets=triplets,
        pool_ids=pool,
        queries=queries,
        gallery_ids=gallery,
        galleries=galleries,
        guarded=guarded,
        notes=(
            *notes,
            *_query_notes(records, config),
            *count_note("images are named by captions but by no image list", sorted(named - listed)),
        ),
        training_notes=notes,
    )


def _records(files: Folders, category: str, split: str) -> list[Record]:
    records = files.records(f"captions/cap.{category}.{split}.json")
    for record in records:
        if len(record.list("captions")) != 2:
            record.fail(f"{len(record.list('captions'))} captions found; exactly two are expected.")
    return records


def _lists(files: Folders, categories: Sequence[str], split: str) -> tuple[str, ...]:
    """Ids of a split over categories, each once; a category whose file is absent has none."""
    names = [f"image_splits/split.{category}.{split}.json" for category in categories]
    return tuple(dict.fromkeys(image for name in names if files.has(name) for image in files.names(name)))


def _gallery(config: FashionIQConfig, files: Folders, category: str, records: Sequence[Record]) -> tuple[str, ...]:
    if config.gallery == "original":
        return tuple(files.names(f"image_splits/split.{category}.{config.split}.json"))
    if config.split == "test":
        raise DataError(
            "Gallery 'val_split' is made of references and targets, and Fashion IQ's test split has no targets; "
            "choose fashioniq.gallery=original or fashioniq.split=val."
        )
    named = complete(records, _IMAGES, [])
    return tuple(dict.fromkeys(image for r in named for image in (r.id("candidate"), r.id("target"))))


def _captions(record: Record) -> tuple[str, str]:
    first, second = (record.as_text("captions", caption) for caption in record.list("captions"))
    return first, second


def _queries(config: FashionIQConfig, category: str, records: Sequence[Record]) -> Iterator[Query]:
    for row, record in enumerate(records):
        if record.lacks(_IMAGES):
            continue
        made = RULES[config.captions].queries(*_captions(record))
        targets = () if config.split == "test" else (record.id("target"),)
        for number, (text, variants) in enumerate(made):
            suffix = f"-{number}" if config.captions in ("both_separate", "each_alone") else ""
            yield Query(
                query_id=f"{category}-{config.split}-{row}{suffix}",
                reference_id=record.id("candidate"),
                modification=text,
                target_ids=targets,
                edit=category,
                gallery=category,
                variants=variants,
            )


def _triplets(
    config: FashionIQConfig, files: Folders, categories: Sequence[str]
) -> tuple[tuple[Triplet, ...], tuple[str, ...]]:
    found: list[Triplet] = []
    left: list[str] = []
    notes = [f"training texts: {config.train_captions}"]
    for split in _TRIPLETS:
        for category in categories:
            if not files.has(f"captions/cap.{category}.{split}.json"):
                notes.append(f"captions/cap.{category}.{split}.json is not here, so there are none of its triplets")
                continue
            for row, record in enumerate(_records(files, category, split)):
                made = [] if record.lacks(_IMAGES) else list(_rows(config, f"{category}-{split}-{row}", split, record))
                usable = [t for t in made if t.modification.strip() and t.reference_id != t.target_id]
                found += usable
                left += [t.triplet_id for t in made if t not in usable]
    return tuple(found), (*notes, *count_note("triplets left out (blank text, or one image twice)", left))


def _rows(config: FashionIQConfig, name: str, split: str, record: Record) -> Iterator[Triplet]:
    """Texts of one triplet: all four ways to train on, the query's own rule (or CLIP4CIR's) otherwise."""
    captions = _captions(record)
    if split == "train" and config.train_captions == "four_ways":
        texts: tuple[str, ...] = four_ways(*captions)
    else:
        rule = config.captions if config.captions in ("plain_and", "reverse_and") else "clip4cir"
        texts = (RULES[rule].queries(*captions)[0][0],)
    for number, text in enumerate(texts):
        yield Triplet(
            triplet_id=f"fashioniq-{name}" + (f"-{number}" if len(texts) > 1 else ""),
            reference_id=record.id("candidate"),
            target_id=record.id("target"),
            modification=text,
            split=split,
            group_id=record.id("candidate"),
            weight=1 / len(texts),
        )


def _query_notes(records: dict[str, list[Record]], config: FashionIQConfig) -> tuple[str, ...]:
    places = [
        f"{category} {config.split} row {row}"
        for category, rows in records.items()
        for row, record in enumerate(rows)
        if not all(caption.strip() for caption in _captions(record))
    ]
    fate = "dropped" if config.captions == "each_alone" else "joined as they are"
    left = [f"{name} {record.place}" for name, rows in records.items() for record in rows if record.lacks(_IMAGES)]
    return (*null_note(left), *count_note(f"queries with an empty caption, {fate}", places))


def _protocol(config: FashionIQConfig, sizes: dict[str, int]) -> Protocol:
    rule = {
        "original": f"`original`, all images of split.<category>.{config.split}.json",
        "val_split": f"`val_split` (VAL), references and targets of cap.<category>.{config.split}.json",
    }[config.gallery]
    counts = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    return Protocol(
        dataset="FashionIQ",
        split=config.split,
        gallery_rule=f"{rule} ({counts})",
        reference_rule=config.reference_rule,
        caption_rule=f"captions `{config.captions}`: {RULES[config.captions].words}",
        label_rule="the one target; means over categories are unweighted",
        metrics=("category_recall",),
        ks=config.ks,
    )
