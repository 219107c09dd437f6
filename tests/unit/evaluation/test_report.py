import dataclasses
import json
import logging
import re
from html.parser import HTMLParser

import pyarrow.parquet as pq
import pytest
from PIL import Image

from cirray.core.errors import DataError
from cirray.data.benchmark import ImageTable
from cirray.data.images import picture_digest
from cirray.evaluation.measures import measure
from cirray.evaluation.metrics import NEVER, group_recall
from cirray.evaluation.page import choose_queries, render_page, write_report
from cirray.evaluation.pictures import Thumbnails
from cirray.evaluation.report import RANKING_SCHEMA, ReportRow, file_name, render_table

NASTY = '<script>alert("x")</script>&\'"><img src=http://example.org/x>'
VOID = {"img", "meta", "br", "path", "use", "rect", "input", "link"}


class Reader(HTMLParser):
    """Collects tags and attributes and checks that tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.errors = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.errors.append(tag)


def test_a_report_writes_every_file(content, tmp_path):
    out = tmp_path / "report"
    metrics = write_report(out, content)
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert names == {"metrics.json", "rankings.parquet", "table.txt", "report.html", "curves/pretraining.png"}
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert Image.open(out / "curves/pretraining.png").size[0] > 300


def test_metrics_json_holds_mean_deviation_and_every_run(content, tmp_path):
    metrics = write_report(tmp_path / "r", content, html=False)
    ours = metrics["rows"][1]
    assert ours["mean"]["R@1"] == pytest.approx((0.5 + 0.75) / 2)
    assert ours["deviation"]["R@1"] == pytest.approx(0.25 / 2**0.5) and len(ours["runs"]) == 2
    assert metrics["rows"][0]["deviation"]["R@1"] is None
    assert metrics["text_samples"] == {"shown": 2, "judged": 2, "exact": 1}
    assert not (tmp_path / "r" / "report.html").exists()


def test_rankings_hold_one_row_per_query_model_and_seed(content, tmp_path):
    write_report(tmp_path / "r", content, html=False)
    table = pq.read_table(tmp_path / "r" / "rankings.parquet")
    assert table.schema.equals(RANKING_SCHEMA) and table.num_rows == 4 + 2 * 4
    rows = table.to_pylist()
    assert rows[0]["rank"] == 4 and rows[7]["rank"] is None and rows[0]["ids"][3] == "im-0"


def test_the_text_table_names_the_protocol_beneath(content):
    text = render_table(content.rows)
    assert text.splitlines()[-1] == "Protocol: toy/test: 6 images."
    assert re.search(r"baseline +25\.0 +75\.0 +0 +1$", text, re.M)
    assert re.search(r"ours +62\.5 ± 17\.7 +62\.5 ± 17\.7 +2,000 +2$", text, re.M)


def test_a_long_fact_is_folded_away(content):
    page = render_page(dataclasses.replace(content, facts={"config": "a\nb\nc\nd<", "short": "x"}))
    assert "<summary>4 lines</summary>a\nb\nc\nd&lt;</details>" in page and "<dd>x</dd>" in page


def test_rows_that_do_not_compare_are_refused(content, make_result):
    other = ReportRow("other", (make_result([0, 1, 2, 3], protocol="another"),))
    with pytest.raises(DataError, match="different protocols"):
        write_report(None, dataclasses.replace(content, rows=(*content.rows, other)))
    fewer = ReportRow("fewer", (make_result([0, 1]),))
    with pytest.raises(DataError, match="different queries"):
        write_report(None, dataclasses.replace(content, rows=(content.rows[0], fewer)))
    with pytest.raises(DataError, match="1 results for 2 seeds"):
        write_report(None, dataclasses.replace(content, rows=(ReportRow("x", (make_result([0]),), (0, 1)),)))
    with pytest.raises(DataError, match="at least one row"):
        write_report(None, dataclasses.replace(content, rows=()))


def test_the_page_is_well_formed_and_asks_for_nothing_from_outside(content):
    page = render_page(content)
    reader = Reader(page)
    assert reader.errors == [] and reader.open == []
    assert {"script", "link", "iframe", "object", "base"} & set(reader.tags) == set()
    sources = [value for _, name, value in reader.attributes if name in ("src", "href", "xlink:href")]
    assert sources and all(value.startswith(("data:image/", "#")) for value in sources)
    assert not re.search(r"url\((?!#)|@import|https?://", page)
    assert "default-src &#39;none&#39;" in page and not any(name.startswith("on") for _, name, _ in reader.attributes)


def test_names_from_outside_are_escaped_everywhere(content, dataset, make_result, tmp_path):
    path = tmp_path / "nasty.png"
    Image.new("RGB", (8, 8)).save(path)
    images = ImageTable({**dataset.images.paths, NASTY: str(path)})
    result = make_result([0, 2, 1, 3], texts=[NASTY] * 4)
    queries = tuple(
        dataclasses.replace(query, query_id=NASTY, edit=NASTY, reference_id=NASTY) for query in result.queries
    )
    result = dataclasses.replace(
        result, queries=queries, protocol=NASTY, per_edit={NASTY: group_recall(result.ranks, (1, 5))}
    )
    sample = dataclasses.replace(content.samples[0], modification=NASTY, verdict=NASTY, target_id=NASTY)
    history = {NASTY: content.histories["pretraining"]}
    page = render_page(
        dataclasses.replace(
            content,
            rows=(ReportRow(NASTY, (result,)),),
            samples=(sample,),
            histories=history,
            title=NASTY,
            facts={NASTY: NASTY},
            dataset=dataclasses.replace(dataset, name=NASTY, images=images),
        )  # fmt: skip
    )
    reader = Reader(page)
    assert "script" not in reader.tags and reader.errors == []
    assert not any(value and value.startswith("http") for _, name, value in reader.attributes if name == "src")


def test_the_target_is_marked_and_shown_with_its_rank_when_it_is_further_down(content, make_result):
    near = render_page(dataclasses.replace(content, rows=(ReportRow("m", (make_result([2]),)),)))
    assert re.search(r'<li class="target"><img[^>]* alt="im-0"[^>]*><span>✓ 3</span>', near)
    far = render_page(dataclasses.replace(content, rows=(ReportRow("m", (make_result([1233]),)),)))
    assert re.search(r'<li class="target far"><img[^>]* alt="im-0"[^>]*><span>1,234</span>', far)


def test_the_chosen_queries_are_clear_hits_true_failures_and_a_seeded_draw(make_result):
    result = make_result([0, 5, 0, 9, NEVER, 0, 3])
    groups = choose_queries(result, 2, seed=1)
    assert groups["Ranked worst"] == [3, 1]
    assert groups["Found most clearly"] == [2, 5] or groups["Found most clearly"] == [5, 2]
    assert {result.queries[at].edit for at in groups["Found most clearly"]} == {"add", "move"}
    assert groups["Drawn at random"] == choose_queries(result, 2, seed=1)["Drawn at random"]
    draws = {tuple(choose_queries(result, 2, seed)["Drawn at random"]) for seed in range(8)}
    assert len(draws) > 2


def test_a_run_without_misses_shows_no_empty_group(content, make_result):
    page = render_page(dataclasses.replace(content, rows=(ReportRow("m", (make_result([0, 0]),)),)))
    assert "Ranked worst" not in page and "Found most clearly" in page


def test_a_picture_that_cannot_be_read_is_logged_and_leaves_the_figures(content, dataset, caplog, monkeypatch):
    broken = ImageTable({**dataset.images.paths, "im-0": dataset.images.paths["im-0"] + ".gone"})
    monkeypatch.setattr(logging.getLogger("cirray"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        page = render_page(dataclasses.replace(content, dataset=dataclasses.replace(dataset, images=broken)))
    assert '<span class="missing" title="im-0">im-0</span>' in page and "50.0" in page
    # another test may have configured logging, after which pytest sees one record twice
    assert len({record.message for record in caplog.records if "no picture" in record.message}) == 1


def test_small_pictures_stay_lossless_and_large_ones_shrink_to_jpeg(tmp_path):
    Image.new("RGB", (40, 20)).save(tmp_path / "small.png")
    Image.new("RGB", (900, 600)).save(tmp_path / "large.png")
    pictures = Thumbnails(ImageTable({name: str(tmp_path / f"{name}.png") for name in ("small", "large")}))
    assert pictures.uri("small").startswith("data:image/png;base64,")
    assert pictures.uri("large").startswith("data:image/jpeg;base64,") and len(pictures.uri("large")) < 20_000


def test_a_picture_that_is_no_longer_the_embedded_one_is_not_shown(tmp_path):
    for name in ("same", "other"):
        Image.new("RGB", (40, 20)).save(tmp_path / f"{name}.png")
    paths = {name: str(tmp_path / f"{name}.png") for name in ("same", "other")}
    known = {"same": picture_digest((tmp_path / "same.png").read_bytes()), "other": "f" * 32}
    pictures = Thumbnails(ImageTable(paths, contents=known))
    assert pictures.uri("same") and pictures.uri("other") is None and pictures.missing == 1


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "", "...", "loss: λ=1"])
def test_a_run_name_becomes_a_harmless_file_name(name):
    assert (
        re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", file_name(name))
        and ".." not in file_name(name).replace("-", "")[:2]
    )


def test_protocols_whose_figures_are_no_plain_recall_still_get_a_page(content, tmp_path):
    row = content.rows[-1]
    results = tuple(
        dataclasses.replace(result, measures=(measure("dress R@10", result.ranks < 10),)) for result in row.results
    )
    changed = dataclasses.replace(content, rows=(dataclasses.replace(row, results=results),))
    write_report(tmp_path / "r", changed)
    page = (tmp_path / "r" / "report.html").read_text()
    assert "dress R@10" in page and "By type of edit" in page


def test_val_and_test_figures_do_not_stand_in_one_table(content, make_result):
    """CIRR's val split is easier than its test split by points; a report compares one protocol only."""
    rows = [ReportRow(split, (make_result([0, 1], f"cirr/{split}: recall"),)) for split in ("val", "test1")]
    with pytest.raises(DataError, match="different protocols do not compare: cirr/test1.*cirr/val"):
        write_report(None, dataclasses.replace(content, rows=tuple(rows)))
