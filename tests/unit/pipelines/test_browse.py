"""`cirray browse`: saved rankings to a page."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cirray.core.errors import DataError
from cirray.data.config import DataConfig, FolderConfig
from cirray.pipelines.evaluation.browse import run_browse
from cirray.pipelines.evaluation.config import BrowseRun


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "world"
    (root / "gallery").mkdir(parents=True)
    for n in range(6):
        Image.new("RGB", (16, 16), (40 * n, 90, 120)).save(root / "gallery" / f"im{n}.png")
    rows = [
        {"query_id": f"q{n}", "reference": f"im{n}", "target": f"im{n + 1}", "modification": f"t {n}"} for n in range(4)
    ]
    (root / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(folder=FolderConfig(root=str(root)))


def lists(path, shift):
    names = [f"im{n}" for n in range(6)]
    path.write_text(json.dumps({f"q{n}": names[(n + shift) % 6 :] + names[: (n + shift) % 6] for n in range(4)}))
    return str(path)


def test_two_saved_runs_become_one_page_and_one_line(data, tmp_path):
    before, after = lists(tmp_path / "before.json", 0), lists(tmp_path / "after.json", 2)
    run = BrowseRun(data=data, run=before, other=after, out=str(tmp_path / "page.html"))
    assert "at rank 1, after wins 0 and loses 4 against before" in run_browse(run).text()
    page = (tmp_path / "page.html").read_text()
    assert "before and after on world" in page and page.count("data:image/png") == 6
    alone = run_browse(run.model_copy(update={"other": ""}))
    assert alone.line == "4 queries"


def test_rankings_of_another_benchmark_are_refused(data, tmp_path):
    (tmp_path / "r.json").write_text('{"other": ["im1"]}')
    with pytest.raises(DataError, match="no list for 4 of 4 queries"):
        run_browse(BrowseRun(data=data, run=str(tmp_path / "r.json"), out=str(tmp_path / "p.html")))


def test_images_in_other_spellings_are_understood_and_strangers_refused(data, tmp_path):
    names = {f"q{n}": [f"gallery/im{n + 1}.png", f"im{n}.png"] for n in range(4)}
    (tmp_path / "a.JSON").write_text(json.dumps(names))
    pq.write_table(pa.table({"query_id": list(names), "ids": list(names.values())}), tmp_path / "b.parquet")
    for name in ("a.JSON", "b.parquet"):
        run_browse(BrowseRun(data=data, run=str(tmp_path / name), out=str(tmp_path / "page.html")))
        page = (tmp_path / "page.html").read_text()
        assert '"ranks": [1]' in page or '"ranks":[1]' in page
    (tmp_path / "c.json").write_text(json.dumps({**names, "q0": ["im77"]}))
    with pytest.raises(DataError, match="query 'q0' holds 'im77', which is not among the 6 images"):
        run_browse(BrowseRun(data=data, run=str(tmp_path / "c.json"), out=str(tmp_path / "p.html")))
