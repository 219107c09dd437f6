"""Metrics: what a replica records, the text of several exporters as one, and the board."""

import json
import re
from pathlib import Path

import pytest

from cirray.serving import metrics as module
from cirray.serving.metrics import METRICS, Meters, merged
from cirray.types import Ranking, StepTimes

ROOT = Path(__file__).resolve().parents[3]
BOARD = json.loads((ROOT / "serve_configs" / "grafana.json").read_text())
SUFFIX = re.compile(r"_(total|bucket|sum|count)$")


class Recorder:
    """A metric of Ray that remembers what it was told."""

    told: list = []

    def __init__(self, name, *given):
        self.name = name

    def record(self, value, labels=None):
        self.told.append((self.name, *(labels or {}).values(), value))

    def set_default_tags(self, tags):
        assert tags == {"gallery": "shop"}

    observe = set = inc = record


@pytest.fixture
def told(monkeypatch):
    for kind in ("Histogram", "Gauge", "Counter"):
        monkeypatch.setattr(module.metrics, kind, Recorder)
    monkeypatch.setattr(Recorder, "told", [])
    return Recorder.told


def test_a_pass_records_what_its_queries_share_once_and_what_is_theirs_for_each(told):
    meters = Meters("shop")
    shared = {"image": 4.0, "text": 5.0, "rank": 6.0}
    answers = [Ranking("", (), (), StepTimes(decode, **shared)) for decode in (1.0, 0.0, 2.0)]
    meters.passed([*answers, ValueError("one failed")], 7, (3, 1))
    assert sorted(told) == sorted([
        ("cirray_batch_size", 4), ("cirray_waiting_queries", 7),
        ("cirray_search_ms", "decode", 1.0), ("cirray_search_ms", "decode", 2.0), ("cirray_search_ms", "image", 4.0),
        ("cirray_search_ms", "text", 5.0), ("cirray_search_ms", "rank", 6.0),
        ("cirray_references", "kept", 3), ("cirray_references", "encoded", 1),
    ])  # fmt: skip
    told.clear()
    meters.passed([ValueError("all failed")], 0, (3, 2))
    assert told == [("cirray_batch_size", 1), ("cirray_waiting_queries", 0), ("cirray_references", "encoded", 1)]


def test_the_exporters_of_all_nodes_become_one_text_with_each_family_once():
    def node(number):
        return (
            "# HELP ray_cirray_batch_size Queries.\n# TYPE ray_cirray_batch_size histogram\n"
            f'ray_cirray_batch_size_bucket{{le="1",replica="{number}"}} {number}\n'
            f'ray_cirray_batch_size_count{{replica="{number}"}} {number}\n'
            "# HELP ray_node_mem_total Memory.\n# TYPE ray_node_mem_total gauge\n"
            f"ray_node_mem_total 5\n# HELP ray_serve_x X.\n# TYPE ray_serve_x gauge\nray_serve_x {number}\n"
        )

    from prometheus_client.parser import text_string_to_metric_families

    text = merged([node(1), node(2)])
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert set(families) == {"ray_cirray_batch_size", "ray_serve_x"}
    assert families["ray_cirray_batch_size"].type == "histogram"
    assert [sample.value for sample in families["ray_cirray_batch_size"].samples] == [1, 1, 2, 2]
    assert [sample.value for sample in families["ray_serve_x"].samples] == [1, 2]
    assert text.count("# HELP") == text.count("# TYPE") == 2 and merged([]) == ""


def test_every_metric_of_this_package_is_on_the_board_and_the_board_names_no_other():
    expressions = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
    named = {SUFFIX.sub("", name) for text in expressions for name in re.findall(r"ray_cirray_\w+", text)}
    assert named == {f"ray_{metric.name}" for metric in METRICS}
    labels = {label for text in expressions for label in re.findall(r'(\w+)="', text)}
    assert labels <= {metric.label for metric in METRICS}


def test_the_board_is_one_that_grafana_reads():
    assert BOARD["schemaVersion"] >= 36 and BOARD["templating"]["list"][0]["type"] == "datasource"
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    for panel in BOARD["panels"]:
        assert panel["title"] and set(panel["gridPos"]) == {"x", "y", "w", "h"}
        assert all(target["expr"].count("(") == target["expr"].count(")") for target in panel["targets"])
