"""The page of all queries: what it embeds, what it bounds, and that its script chooses the right ones."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from cirray.core.errors import DataError
from cirray.data.benchmark import ImageTable
from cirray.evaluation.browse import Limits, Seen, pictured, render_browser, seen, won_and_lost
from cirray.evaluation.rankings import SavedRankings
from cirray.types import Query

NASTY = "</script><script>alert(1)</script> @@script@@ \u2028 é"
SCRIPT = Path(__file__).resolve().parents[3] / "cirray" / "evaluation" / "templates" / "browse.js"


@pytest.fixture
def images(tmp_path):
    paths = {}
    for n in range(20):
        Image.new("RGB", (300, 200), (12 * n, 90, 120)).save(tmp_path / f"{n}.png")
        paths[f"im-{n}"] = str(tmp_path / f"{n}.png")
    paths["im-7"] = str(tmp_path / "gone.png")
    (tmp_path / "8.png").write_bytes(b"no picture")
    return ImageTable(paths)


QUERIES = [Query(f"q{n}", f"im-{n}", f"text {n}", (f"im-{n + 1}",), tags=("aspect",)) for n in range(10)]


def run(name, ranks):
    lists = {
        query.query_id: tuple(f"im-{(n + 3 * step) % 20}" for step in range(12)) for n, query in enumerate(QUERIES)
    }
    return Seen(name, dict(zip((query.query_id for query in QUERIES), ranks, strict=True)), lists)


RANKS = [1, 2, 3, 40, 5, 6, 700, None, 9, 10]


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, flags=re.S).group(1))


def test_the_page_needs_nothing_from_outside_and_only_its_own_script_may_run(images):
    page = render_browser("title", "protocol", QUERIES, [run("mine", RANKS)], images)
    assert not re.search(r"https?://|@import|url\(|<link|<iframe", page)
    script = re.findall(r"<script>(.*?)</script>", page, flags=re.S)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in page and "default-src &#39;none&#39;" in page
    assert "innerHTML" not in page and "document.write" not in page


def test_texts_cannot_break_out_of_the_page(images):
    queries = [Query("q0", "im-0", NASTY, ("im-1",)), *QUERIES[1:]]
    page = render_browser(NASTY, NASTY, queries, [run(NASTY, RANKS)], images)
    assert page.count("<script") == 2 and page.count("</script>") == 2
    data = data_of(page)
    assert data["queries"][0]["text"] == NASTY and data["runs"] == [NASTY]


def test_pictures_are_bounded_and_the_page_says_so(images):
    page = render_browser("t", "p", QUERIES, [run("mine", RANKS)], images, Limits(pictured=2, strip=3, side=32))
    data = data_of(page)
    assert len(data["queries"]) == 10 and len(data["pictures"]) <= 2 * (2 + 3)
    assert "10 of 10 queries are listed, with the first 3 answers of each" in page
    assert "pictures are embedded for 2 of them, the worst and best ranked" in page
    assert all(len(row["lists"][0]) == 3 for row in data["queries"])


def test_the_list_is_bounded_and_keeps_the_pictured_queries(images):
    data = data_of(render_browser("t", "p", QUERIES, [run("mine", RANKS)], images, Limits(pictured=2, listed=4)))
    names = [row["id"] for row in data["queries"]]
    assert len(names) == 4 and {"q7", "q0"} <= set(names) and names == sorted(names)


def test_images_that_cannot_be_read_have_no_picture_and_stop_nothing(images):
    data = data_of(render_browser("t", "p", QUERIES, [run("mine", RANKS)], images))
    assert "2 images could not be read" in render_browser("t", "p", QUERIES, [run("mine", RANKS)], images)
    assert "im-7" not in data["pictures"] and "im-8" not in data["pictures"]
    assert data["pictures"]["im-0"].startswith("data:image/")
    nothing = data_of(render_browser("t", "p", QUERIES, [run("mine", RANKS)], ImageTable()))
    assert nothing["pictures"] == {}


def test_the_worst_and_the_best_queries_get_pictures():
    assert pictured(QUERIES, [run("mine", RANKS)], 4) == ["q7", "q6", "q1", "q0"]
    assert len(pictured(QUERIES, [run("mine", RANKS)], 50)) == 10
    assert pictured(QUERIES, [run("mine", RANKS)], 0) == []


def test_of_two_runs_the_most_lost_and_most_won_get_pictures():
    before, after = run("before", [1] * 9 + [90]), run("after", [500] + [1] * 9)
    assert pictured(QUERIES, [before, after], 2) == ["q0", "q9"]
    assert won_and_lost(QUERIES, [before, after], 1) == (1, 1)
    assert won_and_lost(QUERIES, [before, after], 1000) == (0, 0)


def test_two_runs_stand_side_by_side_with_their_counts(images):
    runs = [run("before", RANKS), run("after", [1] * 10)]
    page = render_browser("t", "p", QUERIES, runs, images)
    assert data_of(page)["runs"] == ["before", "after"] and data_of(page)["queries"][3]["ranks"] == [40, 1]
    assert "after against before, at 1: 9 won, 0 lost; at 5: 6 won, 0 lost" in page


def test_ranks_come_from_the_file_and_otherwise_from_its_lists():
    lists = {query.query_id: ("im-0", f"im-{n}", f"im-{n + 1}") for n, query in enumerate(QUERIES)}
    counted = seen(SavedRankings("m", lists), QUERIES, "remove")
    assert counted.ranks["q4"] == 2 and seen(SavedRankings("m", lists), QUERIES, "keep").ranks["q4"] == 3
    stored = seen(SavedRankings("m", lists, rows={"q4": {"rank": 77}}), QUERIES, "keep", "mine")
    assert stored.ranks["q4"] == 77 and stored.name == "mine"
    with pytest.raises(DataError, match="'m' has no list for 1 of 10 queries; the first is 'q0'"):
        seen(SavedRankings("m", {k: v for k, v in lists.items() if k != "q0"}), QUERIES, "keep")


def test_nothing_to_show_is_refused(images):
    with pytest.raises(DataError, match="one run or two"):
        render_browser("t", "p", [], [run("mine", RANKS)], images)
    with pytest.raises(DataError, match="one run or two"):
        render_browser("t", "p", QUERIES, [], images)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs a JavaScript engine")
def test_the_script_filters_by_words_and_sorts_by_rank():
    program = """
    const { chosen, matches } = require(process.argv[1]);
    const q = (id, text, ...ranks) => ({ id, text, ranks });
    const one = [q("a", "is Red and shorter", 3), q("b", "blue, not red", 1), q("c", "más azul", null)];
    const two = [q("a", "x", 1, 9), q("b", "x", 9, 1), q("c", "x", 1, 1), q("d", "x", null, 50)];
    const ids = (...given) => chosen(...given).map((item) => item.id).join("");
    console.log(JSON.stringify([
      ids(one, 1, "", "all queries", 1, "worst first"), ids(one, 1, "", "all queries", 1, "best first"),
      ids(one, 1, "red", "all queries", 1, "worst first"), ids(one, 1, "RED sho", "found", 5, "best first"),
      ids(one, 1, "", "missed", 1, "as in the data set"), ids(two, 2, "", "won", 1, "most won first"),
      ids(two, 2, "", "lost", 1, "most won first"), ids(two, 2, "", "all queries", 1, "most lost first"),
      ids(two, 2, "", "missed by both", 10, "most won first"), matches("más azul", "mas"), matches("ab-c", "c"),
    ]));
    """
    done = subprocess.run(["node", "-e", program, str(SCRIPT)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ["cab", "bac", "ab", "a", "ac", "b", "a", "acbd", "d", False, True]


FAKE_DOCUMENT = """
const made = {};
const node = (tag) => ({
  tag, children: [], value: "", textContent: "", listeners: {},
  append(...items) { this.children.push(...items); }, replaceChildren() { this.children = []; },
  addEventListener(name, work) { this.listeners[name] = work; },
});
const page = require("fs").readFileSync(process.argv[1], "utf8");
globalThis.document = {
  getElementById: (id) => (made[id] ??= node(id)),
  createElement: (tag) => Object.assign(node(tag), { textContent: "" }),
};
made.data = { textContent: page.match(/id="data">([^]*?)<.script>/)[1] };
document.getElementById("group").value = "all queries";
document.getElementById("order").value = process.argv[2];
document.getElementById("k").value = "1";
new Function(page.match(/<script>([^]*?)<.script>/)[1])();
const flat = (item) => [item, ...(item.children || []).flatMap(flat)];
const tags = (name) => flat(made.queries).filter((item) => item.tag === name);
const missing = tags("span").filter((item) => item.className === "missing");
const before = [tags("article").length, tags("img").length, missing.length];
made.words.value = "text 4";
made.controls.listeners.input();
console.log(JSON.stringify([...before, tags("article").length, made.count.textContent, made.more.hidden]));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs a JavaScript engine")
@pytest.mark.parametrize("two", [False, True])
def test_the_script_builds_the_cards_and_answers_to_the_filter(images, tmp_path, two):
    runs = [run("before", RANKS), run("after", [1] * 10)][: 1 + two]
    (tmp_path / "page.html").write_text(render_browser("t", "p", QUERIES, runs, images), encoding="utf-8")
    order = "most won first" if two else "worst first"
    done = subprocess.run(
        ["node", "-e", FAKE_DOCUMENT, str(tmp_path / "page.html"), order], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    cards, pictures, missing, after, count, hidden = json.loads(done.stdout)
    assert cards == 10 and pictures + missing == 10 * (2 + 10 * len(runs)) and missing > 0
    assert (after, count, hidden) == (1, "1 of 1 queries", True)
