"""Write or check the files of a benchmark's test server. One process, no cluster."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cirray.core import storage
from cirray.core.errors import ConfigError
from cirray.core.progress import progress
from cirray.data.benchmark import CirDataset
from cirray.data.config import DataConfig
from cirray.data.readers import read_dataset
from cirray.evaluation.chunked import Settings
from cirray.evaluation.evaluate import rank_queries
from cirray.evaluation.given import check_sides, open_vectors, plan_for
from cirray.evaluation.plan import make_plan
from cirray.evaluation.rankings import read_lists
from cirray.evaluation.seen import seen_by
from cirray.evaluation.spellings import spellings_of
from cirray.evaluation.submissions import (
    CIRCO,
    RECALL,
    SUBSET,
    SUBSET_LENGTH,
    Checked,
    build,
    check,
    decode,
    encode,
    kind_of,
    lists_of,
    refuse,
)
from cirray.evaluation.vectors import rank_vectors
from cirray.features.store import FeatureStore, check_tower
from cirray.image_text import load_models
from cirray.pipelines.evaluation.evaluate_config import SubmitRun
from cirray.pipelines.rewrites.texts import with_texts

_SUBMISSIONS = {"cirr": (RECALL, SUBSET), "circo": (CIRCO,)}
_FILES = {RECALL: "recall", SUBSET: "recall_subset", CIRCO: "submission"}
_TOP = 51
"""One more than the servers ask for, as CIRR's reference is removed."""


@dataclass(frozen=True)
class Submission:
    """The files written or checked."""

    lines: tuple[str, ...]

    def text(self) -> str:
        """One line per file."""
        return "\n".join(self.lines)


def run_submit(run: SubmitRun) -> Submission:
    """Write a submission, every file validated before any is written; or check a file.

    Raises ConfigError: fields that do not go together; DataError: rankings or vectors that do not cover the split, or a
    file that breaks the server's rules (named).
    """
    if run.check:
        return _check_file(run)
    dataset = _dataset(run.data)
    kinds = _SUBMISSIONS[_kind(run, dataset)]
    if storage.is_local(run.out) and storage.local_path(run.out).is_file():
        raise ConfigError(f"out={run.out!r} is a file; name a folder for the submission's files.")
    ranked = _ranked(run, dataset)
    files, notes = {}, list(ranked.notes)
    for kind in kinds:
        lists = ranked.subsets if kind == SUBSET else ranked.lists
        if not lists:
            notes.append(f"{kind}: not written, {ranked.missing}")
            continue
        payload = build(kind, dataset.queries, lists)
        files[kind] = encode(payload)
        _validate(payload, len(files[kind]), kind, dataset, _name(dataset, kind))
    lines = []
    for kind, data in files.items():
        place = storage.join(run.out, _name(dataset, kind))
        storage.write_bytes(place, data)
        lines.append(f"{kind}: {place}  ({len(dataset.queries):,} queries, {len(data):,} bytes, checked)")
    return Submission((*lines, *notes))


def _check_file(run: SubmitRun) -> Submission:
    data = storage.read_bytes(run.check)
    payload = decode(data, run.check)
    dataset = _dataset(run.data) if run.data is not None else None
    server = run.kind or (_kind(run, dataset) if dataset is not None else "")
    kind = kind_of(payload, _SUBMISSIONS[server]) if server else ""
    if dataset is None:
        checked = check(payload, len(data), kind)
        refuse(checked, run.check)
    else:
        checked = _validate(payload, len(data), kind, dataset, run.check)
    return Submission((checked.text(run.check),))


def _validate(payload: Mapping[str, Any], size: int, kind: str, dataset: CirDataset, name: str) -> Checked:
    checked = check(payload, size, kind, dataset.queries, dataset.gallery_ids)
    refuse(checked, name)
    return checked


def _dataset(data: DataConfig | None) -> CirDataset:
    if data is None:
        raise ConfigError("A submission needs its benchmark: data.format=cirr or circo, with its root and split.")
    return read_dataset(data, training=False)


def _kind(run: SubmitRun, dataset: CirDataset) -> str:
    if run.kind:
        return run.kind
    name = dataset.protocol.dataset.lower()
    found = [kind for kind in _SUBMISSIONS if kind in name]
    if len(found) != 1:
        raise ConfigError(
            f"Data set {dataset.protocol.dataset!r} has no known test server. Known: "
            f"{', '.join(_SUBMISSIONS)}; name one with kind=..."
        )
    return found[0]


def _name(dataset: CirDataset, kind: str) -> str:
    return f"{'circo' if kind == CIRCO else 'cirr'}-{dataset.protocol.split}-{_FILES[kind]}.json"


Lists = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class _Ranked:
    """Query id -> ranked ids of the gallery and of the subsets; if unknown, empty, and `missing` says why."""

    lists: Lists
    subsets: Lists
    notes: tuple[str, ...] = ()
    missing: str = "without lists of the gallery (rankings=FILE)."


def _ranked(run: SubmitRun, dataset: CirDataset) -> _Ranked:
    ways = {
        "rankings=FILE": bool(run.rankings or run.subsets),
        "checkpoint=URI with features=[URI]": bool(run.checkpoint),
        "queries=FILE with gallery=FILE": bool(run.queries or run.gallery),
    }
    given = [name for name, chosen in ways.items() if chosen]
    if len(given) != 1:
        raise ConfigError(
            f"A submission is made from one of: {', '.join(ways)}; {' and '.join(given) or 'neither'} was given."
        )
    if run.texts and not run.checkpoint:
        raise ConfigError(
            "texts=REWRITES needs checkpoint=URI: rankings and vectors were made with the texts they have."
        )
    if run.checkpoint:
        return _by_checkpoint(run, dataset)
    return _by_vectors(run, dataset) if run.queries or run.gallery else _by_lists(run, dataset)


def _by_lists(run: SubmitRun, dataset: CirDataset) -> _Ranked:
    spellings, found = spellings_of(dataset), read_lists(run.rankings, run.subsets, run.row, run.seed)
    lists: Lists = spellings.lists(found[0])
    subsets: Lists = spellings.lists(found[1])
    missing = _Ranked.missing
    if lists and not subsets:
        subsets, cut = _subsets_from(lists, dataset)
        if cut:
            subsets = {}
            missing = (
                f"{len(cut):,} lists end before three images of their subset (the first is that of query {cut[0]!r}): "
                "give the subsets' own ranking (subsets=FILE), lists of the whole gallery, vectors or a checkpoint."
            )
    return _Ranked(lists, subsets, spellings.note(), missing)


def _subsets_from(lists: Lists, dataset: CirDataset) -> tuple[Lists, list[str]]:
    """Order of every subset inside the lists, and the queries with fewer than the server's three."""
    found = {
        query.query_id: [name for name in lists.get(query.query_id, ()) if name in query.subset]
        for query in dataset.queries
        if query.query_id in lists
    }
    others = {query.query_id: query.reference_id for query in dataset.queries}
    cut = [name for name, ids in found.items() if len([item for item in ids if item != others[name]]) < SUBSET_LENGTH]
    return found, cut


def _by_vectors(run: SubmitRun, dataset: CirDataset) -> _Ranked:
    check_sides(run.queries, run.gallery, run.gallery_ids)
    spellings = spellings_of(dataset)
    given = open_vectors(run.queries, run.query_ids, run.gallery, run.gallery_ids, spellings)
    named = (name for file in given.gallery for name in file.ids)
    plan, notes = plan_for(dataset, dataset.protocol, named, spellings, scored=False)
    settings = Settings(run.device, normalize=run.normalize)
    with progress(f"rank {dataset.name}", len(plan.queries), "queries") as advance:
        ranked = rank_vectors(plan, given.queries, given.gallery, settings, top_k=_TOP, judge=False, advance=advance)
    return _Ranked(lists_of(ranked.rankings), lists_of(ranked.subset_rankings), (*notes, *spellings.note()))


def _by_checkpoint(run: SubmitRun, dataset: CirDataset) -> _Ranked:
    dataset = with_texts(dataset, run.texts)[0] if run.texts else dataset
    if not run.features:
        raise ConfigError("A checkpoint ranks by stored features: give features=[URI] of every image.")
    encoder, vision, transform = load_models(run.checkpoint, run.device)
    features = FeatureStore.open_many(run.features)
    check_tower(run.features, features.info.encoder_digest, run.checkpoint, vision.digest)
    plan = make_plan(dataset.queries, dataset.gallery_ids, dataset.protocol, dataset.galleries, scored=False)
    seen = seen_by(encoder, features, dataset.images, transform)
    with progress(f"rank {dataset.name}", len(plan.ids) + len(plan.queries), "images and queries") as advance:
        ranked = rank_queries(encoder, seen, plan, batch=run.batch, top_k=_TOP, judge=False, advance=advance)
    return _Ranked(lists_of(ranked.rankings), lists_of(ranked.subset_rankings))
