"""The package's readers against an independent parse of the same files, down to the figures of saved vectors."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cirray.data.config import DataConfig
from cirray.data.readers import read_dataset
from cirray.pipelines.evaluation.config import ScoreRun
from cirray.pipelines.evaluation.score import run_score

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
REAL = SimpleNamespace(**runpy.run_path(str(FIXTURES / "public_annotations.py")))
NAIVE = SimpleNamespace(**runpy.run_path(str(FIXTURES / "naive_metrics.py")))


@pytest.fixture(scope="module", autouse=True)
def readers():
    pytest.importorskip("cirray.data.cirr")
    REAL.load("cirr/captions/cap.rc2.val.json")


def dataset(name, **fields):
    return DataConfig.model_validate({"format": name, name: {"root": str(REAL.ROOT / name), **fields}})


def asked(query):
    return query.reference_id, query.target_ids, query.subset, query.soft


def vectors(folder, name, ids, seed, width=8):
    rng = np.random.default_rng(seed)
    array = rng.standard_normal((len(ids), width)).astype(np.float16)
    np.save(folder / f"{name}.npy", array)
    (folder / f"{name}.ids.json").write_text(json.dumps(list(ids)))
    return str(folder / f"{name}.npy"), dict(zip(ids, array.astype(np.float64), strict=True))


def scored(data, tmp_path):
    read = read_dataset(data)
    queries, query_of = vectors(tmp_path, "queries", [query.query_id for query in read.queries], 0)
    images = tuple(dict.fromkeys((*read.gallery_ids, *(i for ids in read.galleries.values() for i in ids))))
    gallery, image_of = vectors(tmp_path, "gallery", images, 1)
    run = ScoreRun(data=data, queries=queries, gallery=(gallery,), normalize=False)
    return read, run_score(run).result, query_of, image_of


def rows(read, query_of, image_of, step=1):
    """Naive float64 scores of every `step`-th query over its gallery, rounded as the scorer's."""
    stacks = {}
    for query in read.queries[::step]:
        ids = list(read.galleries.get(query.gallery, read.gallery_ids))
        if query.gallery not in stacks:
            stacks = {query.gallery: np.stack([image_of[name] for name in ids])}
        yield query, ids, (stacks[query.gallery] @ query_of[query.query_id]).astype(np.float32)


def test_cirr_is_read_and_counted_as_the_protocol_says(tmp_path):
    read, result, query_of, image_of = scored(dataset("cirr"), tmp_path)
    expected, gallery = REAL.cirr_val()
    assert [asked(query) for query in read.queries] == [asked(query) for query in expected]
    assert sorted(read.gallery_ids) == gallery
    places = [NAIVE.first_hit(row, ids, q.target_ids, q.reference_id, True) for q, ids, row in
              rows(read, query_of, image_of)]  # fmt: skip
    assert {k: result.hit_counts[f"R@{k}"] for k in (1, 5, 10, 50)} == {
        k: NAIVE.count_hits(places, k) for k in (1, 5, 10, 50)
    }
    assert {"Rs@1", "Rs@2", "Rs@3", "Avg"} <= set(result.metrics) and "4,181 queries over 2,297" in result.protocol


@pytest.mark.parametrize("rule", ["original", "val_split"])
def test_fashioniq_is_read_and_counted_as_the_protocol_says(rule, tmp_path):
    read, result, query_of, image_of = scored(dataset("fashioniq", gallery=rule), tmp_path)
    expected, galleries = REAL.fashioniq_val(rule)
    assert [asked(query) for query in read.queries] == [asked(query) for query in expected]
    assert {name: sorted(ids) for name, ids in read.galleries.items()} == {
        name: sorted(ids) for name, ids in galleries.items()
    }
    found = [rank if rank < 10**6 else None for rank in result.ranks.tolist()]
    for at, (query, ids, row) in enumerate(rows(read, query_of, image_of, 5)):  # the other test counts all of them
        assert found[5 * at] == NAIVE.first_hit(row, ids, query.target_ids, query.reference_id, False)
    assert {f"{name} R@{k}" for name in galleries for k in (10, 50)} == set(result.hit_counts)


def test_genecis_is_read_and_counted_as_the_protocol_says(tmp_path):
    read, result, query_of, image_of = scored(dataset("genecis"), tmp_path)
    expected, galleries = REAL.genecis()
    assert [len(read.galleries[query.gallery]) for query in read.queries] == [
        len(galleries[query.gallery]) for query in expected
    ]
    places = {task: [] for task in REAL.TASKS}
    for query, ids, row in rows(read, query_of, image_of):
        assert ids[0] == query.target_ids[0]
        places[query.tags[0]].append(NAIVE.genecis_place(row.tolist(), ids))
    assert result.hit_counts == {f"{t} R@{k}": NAIVE.count_hits(places[t], k) for t in REAL.TASKS for k in (1, 2, 3)}


def test_shoes_is_read_and_counted_as_the_protocol_says(tmp_path):
    read, result, query_of, image_of = scored(dataset("shoes"), tmp_path)
    expected, gallery = REAL.shoes()
    assert [asked(query) for query in read.queries] == [asked(query) for query in expected]
    assert sorted(read.gallery_ids) == sorted(gallery)
    places = [NAIVE.first_hit(row, ids, q.target_ids, q.reference_id, True) for q, ids, row in
              rows(read, query_of, image_of)]  # fmt: skip
    assert result.hit_counts == {f"R@{k}": NAIVE.count_hits(places, k) for k in (1, 10, 50)}


def test_circo_lists_are_scored_without_the_image_list():
    file = REAL.ROOT / "circo" / "submission_examples" / "submission_val.json"
    result = run_score(ScoreRun(data=dataset("circo"), ranks=str(file))).result
    lists = {key: list(map(str, ids)) for key, ids in json.loads(file.read_text()).items()}
    queries, _ = REAL.circo("val")
    found = sum(NAIVE.circo_ap(lists[q.query_id], q.target_ids, 10)[1] for q in queries)
    assert result.hit_counts["mAP@10"] == found and len([n for n in result.metrics if n.startswith("mAP@10 ")]) == 9


def test_domain_conversion_is_counted_as_set_recall(tmp_path):
    data = DataConfig.model_validate(
        {"format": "imagenet_r", "imagenet_r": {"root": str(REAL.ROOT / "imgnet"), "domain": "origami"}}
    )
    read, result, query_of, image_of = scored(data, tmp_path)
    assert len(read.gallery_ids) == 16983
    found = {10: 0, 50: 0}
    share = {10: 0.0, 50: 0.0}
    for query, ids, row in rows(read, query_of, image_of, 30):
        order = NAIVE.ranked(row, ids, dict.fromkeys(query.target_ids, 1.0), query.reference_id, False)
        for k in found:
            hits = len(set(order[:k]) & set(query.target_ids))
            found[k], share[k] = found[k] + hits, share[k] + hits / len(query.target_ids)
    chosen = range(0, len(read.queries), 30)
    by_name = {item.name: item for item in result.measures}
    for k in found:
        gains = by_name[f"set R@{k}"].gains[list(chosen)]
        assert gains.sum() == pytest.approx(share[k], abs=1e-9)
        assert round(by_name[f"P@{k}"].gains[list(chosen)].sum() * k) == found[k]
