"""Submission files: what is built keeps every rule, and every broken rule is named."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from cirray.core.errors import DataError
from cirray.evaluation.rankings import as_lists
from cirray.evaluation.submissions import (
    CIRCO,
    MAX_BYTES,
    RECALL,
    SUBSET,
    build,
    check,
    decode,
    detect,
    encode,
    refuse,
)
from cirray.types import Query

ROOT = Path(__file__).resolve().parents[2]
REAL = SimpleNamespace(**runpy.run_path(str(ROOT / "fixtures" / "public_annotations.py")))
NAMES = [f"test1-{n}-0-img0" for n in range(60)]
QUERIES = [Query(str(12063 + 7 * n), NAMES[n], "text", (), subset=tuple(NAMES[n : n + 6])) for n in range(5)]
LISTS = {query.query_id: NAMES for query in QUERIES}
SUBSETS = {query.query_id: query.subset[::-1] for query in QUERIES}
NUMBERS = [Query(str(n), str(100 + n), "text", ()) for n in range(4)]


def problems(payload, kind="", size=0, queries=QUERIES, gallery=NAMES):
    return check(payload, size, kind, queries, gallery).problems


def test_a_recall_file_holds_fifty_names_without_the_reference_under_string_keys():
    payload = build(RECALL, QUERIES, LISTS)
    assert payload["version"] == "rc2" and payload["metric"] == "recall"
    assert set(payload) == {"version", "metric", *(query.query_id for query in QUERIES)}
    assert payload["12063"] == NAMES[1:51] and "test1-0-0-img0" not in payload["12063"]
    assert problems(payload) == ()


def test_a_subset_file_holds_three_of_the_other_five_members():
    payload = build(SUBSET, QUERIES, SUBSETS)
    assert payload["metric"] == "recall_subset" and payload["12063"] == list(QUERIES[0].subset[:2:-1])
    assert problems(payload) == ()


def test_a_circo_file_holds_fifty_numbers_and_only_query_keys():
    lists = {query.query_id: [f"{n:012d}" for n in range(500, 570)] for query in NUMBERS}
    payload = build(CIRCO, NUMBERS, lists)
    assert list(payload) == ["0", "1", "2", "3"] and payload["0"] == list(range(500, 550))
    assert problems(payload, queries=NUMBERS, gallery=[f"{n:012d}" for n in range(600)]) == ()


def test_a_file_read_back_is_the_file_written():
    payload = build(RECALL, QUERIES, LISTS)
    again = decode(encode(payload), "mine.json")
    assert again == payload and detect(again) == RECALL
    assert as_lists(again, "mine.json")["12063"] == tuple(NAMES[1:51])


def test_a_query_without_a_list_or_with_a_short_one_is_refused():
    with pytest.raises(DataError, match="Query '12070' has no ranked list"):
        build(RECALL, QUERIES, {"12063": NAMES})
    with pytest.raises(DataError, match="'12063' holds 29 images"):
        build(RECALL, QUERIES, dict.fromkeys(LISTS, NAMES[:30]))


def test_circo_images_that_are_no_numbers_are_refused():
    with pytest.raises(DataError, match="'cat' is none"):
        build(CIRCO, NUMBERS[:1], {"0": ["cat"] * 50})


def spoiled(change):
    payload = build(RECALL, QUERIES, LISTS)
    change(payload)
    return payload


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda p: p.update(version="rc1"), "the key 'version' must be 'rc2', found 'rc1'"),
        (lambda p: p.pop("12070"), "1 queries are missing, the first is '12070'"),
        (lambda p: p.update({"99": p["12063"]}), "1 keys are no query of the split, the first is '99'"),
        (lambda p: p.update({"x7": p.pop("12063")}), "the key 'x7' is no decimal number"),
        (lambda p: p["12063"].pop(), "query '12063' has 49 images; exactly 50 are needed"),
        (lambda p: p["12063"].__setitem__(3, p["12063"][0]), "query '12063' holds 'test1-1-0-img0' twice"),
        (lambda p: p["12063"].__setitem__(3, "test1-0-0-img0"), "query '12063' holds its own reference"),
        (lambda p: p["12063"].__setitem__(3, "test1-77-0-img0"), "'test1-77-0-img0', which is not in the gallery"),
        (lambda p: p["12063"].__setitem__(3, "./test1/a.png"), "names without folder or suffix"),
        (lambda p: p["12063"].__setitem__(3, 7), "query '12063' holds 7; images are given as names"),
        (lambda p: p.update({"12063": "a"}), "query '12063' holds a str instead of a list"),
    ],
)
def test_every_broken_rule_of_a_recall_file_is_named(change, sentence):
    assert any(sentence in problem for problem in problems(spoiled(change)))


def test_a_subset_file_with_a_stranger_or_the_reference_is_named():
    payload = build(SUBSET, QUERIES, SUBSETS)
    payload["12063"] = [NAMES[0], NAMES[40], NAMES[3]]
    found = problems(payload)
    assert any("own reference" in item for item in found) and any("not in its subset" in item for item in found)


def test_a_file_beyond_five_megabytes_is_refused():
    assert any("at most 5,000,000" in item for item in problems(build(RECALL, QUERIES, LISTS), size=MAX_BYTES + 1))


@pytest.mark.parametrize("item", ["000000000512", "512.jpg", 1.5, True, -3])
def test_circo_ids_that_are_padded_or_file_names_are_named(item):
    payload = build(CIRCO, NUMBERS, {query.query_id: [str(n) for n in range(500, 550)] for query in NUMBERS})
    payload["2"][7] = item
    found = problems(payload, CIRCO, queries=NUMBERS, gallery=())
    assert any("whole numbers without padding" in problem for problem in found)


def test_circo_digit_strings_are_accepted_and_count_as_their_number():
    payload = {query.query_id: [str(n) for n in range(500, 550)] for query in NUMBERS}
    assert problems(payload, CIRCO, queries=NUMBERS, gallery=()) == ()
    payload["1"][0] = 501
    assert problems(payload, CIRCO, queries=NUMBERS, gallery=()) == ("query '1' holds 501 twice",)


def test_without_the_benchmark_the_number_of_queries_is_still_checked():
    payload = build(RECALL, QUERIES, LISTS)
    assert check(payload, 0).problems == ("it answers 5 queries; 4,148 (test1) or 4,181 (val) are needed",)
    lists = {str(n): list(range(50)) for n in range(220)}
    assert check(lists, 0).problems == ()
    shifted = {str(n + 1): list(range(50)) for n in range(220)}
    assert check(shifted, 0).problems == ("the keys must be exactly '0' to '219'",)


def test_a_key_that_stands_twice_is_refused_though_json_would_keep_the_last():
    with pytest.raises(DataError, match="key '12063' twice"):
        decode(b'{"version": "rc2", "12063": ["a"], "12063": ["b"]}', "mine.json")


@pytest.mark.parametrize("data", [b"[1, 2]", b"{", b"\xff\xfe"])
def test_what_is_no_json_object_is_refused(data):
    with pytest.raises(DataError, match="'mine.json'"):
        decode(data, "mine.json")


def test_kinds_are_told_apart_by_what_a_file_holds():
    assert detect({"0": [1, 2], "1": ["3"]}) == CIRCO
    assert detect({"12063": NAMES[:50]}) == RECALL and detect({"12063": NAMES[:3]}) == SUBSET
    with pytest.raises(DataError, match="no ranked list"):
        detect({"a": 1})


def test_the_refusal_counts_all_broken_rules_and_shows_the_first():
    payload = {"version": "rc2", "metric": "recall", **{query.query_id: ["a.png"] for query in QUERIES}}
    with pytest.raises(DataError, match=r"no valid cirr-recall submission \(10 broken rules\).*and 5 more"):
        refuse(check(payload, 0, "", QUERIES), "mine.json")


@pytest.mark.parametrize(("name", "kind"), [("recall", RECALL), ("recall_subset", SUBSET)])
def test_the_official_cirr_example_keeps_every_rule_and_round_trips(name, kind):
    path = REAL.ROOT / "cirr" / "demo_files" / f"test1_pred_ranks_{name}.json"
    official = REAL.load(f"cirr/demo_files/test1_pred_ranks_{name}.json")
    queries, gallery = REAL.cirr_test()
    assert check(official, path.stat().st_size, "", queries, gallery).problems == ()
    assert check(official, path.stat().st_size).kind == kind
    mine = build(kind, queries, as_lists(official, name))
    assert mine == official and len(encode(mine)) == path.stat().st_size
    assert json.loads(encode(mine)) == official


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_official_circo_example_keeps_every_rule_and_round_trips(split):
    path = REAL.ROOT / "circo" / "submission_examples" / f"submission_{split}.json"
    official = REAL.load(f"circo/submission_examples/submission_{split}.json")
    queries, _ = REAL.circo(split)
    assert check(official, path.stat().st_size, "", queries, REAL.circo_images()).problems == ()
    mine = build(CIRCO, queries, as_lists(official, split))
    assert mine == official and len(encode(mine)) == path.stat().st_size
