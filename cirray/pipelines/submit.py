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
from cirray.evaluation.config import SubmitRun
from cirray.evaluation.evaluate import rank_queries
from cirray.evaluation.plan import make_plan
from cirray.evaluation.rankings import read_rankings
from cirray.evaluation.submissions import CIRCO, RECALL, SUBSET, Checked, build, check, decode, encode, refuse
from cirray.features.store import FeatureStore, check_tower
from cirray.pipelines.rewrites.texts import with_texts
from cirray.retriever import load_models

_KINDS = {"cirr": (RECALL, SUBSET), "circo": (CIRCO,)}
_FILES = {RECALL: "recall", SUBSET: "recall_subset", CIRCO: "submission"}
_TOP = 51
"""One more than the servers ask for: CIRR's own reference leaves the list."""


@dataclass(frozen=True)
class Submission:
    """What was written or checked, in words."""

    lines: tuple[str, ...]

    def text(self) -> str:
        """One line per file."""
        return "\n".join(self.lines)


def run_submit(run: SubmitRun) -> Submission:
    """Write a submission, every file validated before any is written; or check somebody's.

    Raises:
        ConfigError: fields that do not go together.
        DataError: rankings that do not cover the split, or a file that breaks the server's rules (named).
    """
    if run.check:
        return _check_file(run)
    dataset = _dataset(run.data)
    kinds = _KINDS[_kind(run, dataset)]
    lists, subsets = _lists(run, dataset)
    files = {}
    for kind in kinds:
        payload = build(kind, dataset.queries, subsets if kind == SUBSET else lists)
        files[kind] = encode(payload)
        _validate(payload, len(files[kind]), kind, dataset, _name(dataset, kind))
    lines = []
    for kind, data in files.items():
        place = storage.join(run.out, _name(dataset, kind))
        storage.write_bytes(place, data)
        lines.append(f"{kind}: {place}  ({len(dataset.queries):,} queries, {len(data):,} bytes, checked)")
    return Submission(tuple(lines))


def _check_file(run: SubmitRun) -> Submission:
    data = storage.read_bytes(run.check)
    payload = decode(data, run.check)
    kinds = _KINDS.get(run.kind, ())
    kind = kinds[0] if len(kinds) == 1 else ""
    if run.data is None:
        checked = check(payload, len(data), kind)
        refuse(checked, run.check)
    else:
        checked = _validate(payload, len(data), kind, _dataset(run.data), run.check)
    return Submission((checked.text(run.check),))


def _validate(payload: Mapping[str, Any], size: int, kind: str, dataset: CirDataset, name: str) -> Checked:
    checked = check(payload, size, kind, dataset.queries, dataset.gallery_ids)
    refuse(checked, name)
    return checked


def _dataset(data: DataConfig | None) -> CirDataset:
    if data is None:
        raise ConfigError("A submission needs its benchmark: data.format=cirr or circo, with its root and split.")
    return read_dataset(data)


def _kind(run: SubmitRun, dataset: CirDataset) -> str:
    if run.kind:
        return run.kind
    name = dataset.protocol.dataset.lower()
    found = [kind for kind in _KINDS if kind in name]
    if len(found) != 1:
        raise ConfigError(
            f"Data set {dataset.protocol.dataset!r} has no known test server. Known: {', '.join(_KINDS)}; name one "
            "with kind=..."
        )
    return found[0]


def _name(dataset: CirDataset, kind: str) -> str:
    return f"{'circo' if kind == CIRCO else 'cirr'}-{dataset.protocol.split}-{_FILES[kind]}.json"


def _lists(run: SubmitRun, dataset: CirDataset) -> tuple[Mapping[str, Sequence[str]], Mapping[str, Sequence[str]]]:
    if bool(run.rankings) == bool(run.checkpoint):
        given = "both" if run.rankings else "neither"
        raise ConfigError(
            f"A submission is made from rankings=FILE or from checkpoint=URI with features=[URI]; {given} was given."
        )
    if run.checkpoint:
        return _ranked(run, dataset)
    if run.texts:
        raise ConfigError("texts=REWRITES needs checkpoint=URI: saved rankings were made with the texts they have.")
    saved = read_rankings(run.rankings, run.row, run.seed)
    subsets = read_rankings(run.subsets).lists if run.subsets else saved.subsets
    return saved.lists, subsets or _subsets_from(saved.lists, dataset)


def _subsets_from(lists: Mapping[str, Sequence[str]], dataset: CirDataset) -> dict[str, list[str]]:
    """Order of every subset inside lists that are long enough to hold it."""
    return {
        query.query_id: [name for name in lists.get(query.query_id, ()) if name in query.subset]
        for query in dataset.queries
    }


def _ranked(run: SubmitRun, dataset: CirDataset) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    dataset = with_texts(dataset, run.texts)[0] if run.texts else dataset
    if not run.features:
        raise ConfigError("A checkpoint ranks by stored features: give features=[URI] of every image.")
    encoder, vision, _ = load_models(run.checkpoint, run.device)
    features = FeatureStore.open_many(run.features)
    check_tower(run.features, features.info.encoder_digest, run.checkpoint, vision.digest)
    plan = make_plan(dataset.queries, dataset.gallery_ids, dataset.protocol, dataset.galleries, scored=False)
    with progress(f"rank {dataset.name}", len(plan.ids) + len(plan.queries), "images and queries") as advance:
        ranked = rank_queries(encoder, features, plan, batch=run.batch, top_k=_TOP, judge=False, advance=advance)
    lists = {ranking.query_id: ranking.ids for ranking in ranked.rankings}
    return lists, {ranking.query_id: ranking.ids for ranking in ranked.subset_rankings}
