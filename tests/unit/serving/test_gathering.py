"""A gallery in several searchers answers as one index does, and says what it lacks when one is away."""

import asyncio
import base64
import shutil
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest

from cirray.catalogue.change import Change
from cirray.catalogue.searcher import Key, Searcher
from cirray.catalogue.table import Catalogue
from cirray.core.artifacts import read_manifest
from cirray.core.errors import ArtifactError, AwayError, IndexMismatchError
from cirray.image_text import load_models
from cirray.index import store as store_module
from cirray.index.shards import SLOTS, Shard, shard_of, slot_of
from cirray.index.uses import use_of
from cirray.pipelines.search.living import run_gallery
from cirray.pipelines.search.living_config import GalleryRun
from cirray.search_engine import SearchEngine
from cirray.serving import gathering as gathering_module
from cirray.serving.config import ServeArgs, ServingSettings
from cirray.serving.gathering import Gathering, Line
from cirray.serving.launch import problem_of
from cirray.serving.loaded import Loaded
from cirray.serving.service import DirectService, Workers

COLUMNS = ("id,price,kind,since", *(
    f"plain/{n:02d},{'' if n == 4 else n}.5,{'odd' if n % 4 else 'even'},2025-01-{n + 1:02d}" for n in range(0, 24, 2)
))  # fmt: skip


MADE = []
"""Searchers and engines of a test."""


class Processes:
    """Searchers in this process, each of which may be as good as dead, or slow."""

    def __init__(self, of):
        self.searchers, self.dead, self.slow = [Searcher(Shard(number, of)) for number in range(of)], set(), set()
        self.lost = set()
        MADE.extend(self.searchers)
        self.asked = []

    def line(self, timeout_s=5.0):
        return Line([self._ask(number) for number in range(len(self.searchers))], timeout_s)

    def _ask(self, number):
        async def ask(*call):
            self.asked.append((number, call[0]))
            if number in self.dead or (number, call[0]) in self.lost:
                raise RuntimeError("the actor died")
            await asyncio.sleep(60 if number in self.slow else 0)
            return await asyncio.to_thread(self.searchers[number].answer, *call)

        return ask


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A frozen index with metadata, and a living gallery of the same images that has changed since."""
    import tiny_service

    root = tmp_path_factory.mktemp("filled")
    (root / "m.csv").write_text("\n".join(COLUMNS))
    made = tiny_service.make(root, metadata=str(root / "m.csv"))
    living = str(root / "living")
    run_gallery(GalleryRun(index=made.index, out=living))
    table, rows = Catalogue.open(living), np.random.default_rng(0).normal(size=(9, 3, 8)).astype(np.float16)
    table.write([Change("plain/08"), Change("plain/10")])
    table.write([Change(f"new {n}", row, metadata={"price": float(n)}) for n, row in enumerate(rows)])
    table.compact(keep_s=0)
    return made, living


@pytest.fixture(autouse=True)
def closed():
    """No thread of a test reads a table when the process ends."""
    MADE.clear()
    yield
    for made in MADE:
        made.close() if isinstance(made, Searcher) else made.follower and made.follower.stop()


@pytest.fixture(params=["frozen", "living"])
def place(request, filled):
    made, living = filled
    return made.checkpoint, made.index if request.param == "frozen" else living


def gathered(place, of=3, partial=False, timeout_s=5.0):
    """An engine over searchers, what stands for their processes, and the engine over one index."""
    checkpoint, index = place
    encoder, vision, transform = load_models(checkpoint)
    processes = Processes(of)
    source = Gathering(index, encoder.index_digests, vision.digest, processes.line(timeout_s), partial)
    whole = SearchEngine.open(checkpoint, index)
    MADE.append(whole)
    return SearchEngine(encoder, vision, transform, source), processes, whole


def test_every_id_is_in_one_shard_of_any_number_and_shards_are_of_one_size():
    for of in (1, 2, 3, 7, 256):
        shards = [Shard(number, of) for number in range(of)]
        assert [slot for shard in shards for slot in shard.slots] == list(range(SLOTS))
        for pattern, count in (("photos/IMG_{:05d}.jpg", 20_000), ("plain/{:02d}", 100), ("{}", 10_000)):
            names = [pattern.format(number) for number in range(count)]
            counts = np.bincount([shard_of(name, of) for name in names], minlength=of)
            assert counts.sum() == count and counts.std() < 1.5 * np.sqrt(count / of)
            assert all(slot_of(name) in shards[shard_of(name, of)].slots for name in names[:500])
    assert slot_of("gal-00020-0") == (zlib.crc32(b"gal-00020-0") * 0x9E3779B1 % 2**32) // 2**20
    assert Shard(shard_of("a", 2), 2).rows(["b", "a", "a"]).tolist()[-2:] == [1, 2]


def bodies(picture, ids):
    """Queries of every shape that this model does."""
    coded = base64.b64encode(picture(5)).decode()
    return [
        {"text": "blue", "gallery_id": ids[3]},
        {"text": "blue", "gallery_id": ids[3], "exclude_reference": False, "k": 40},
        {"text": "red star"},
        {"gallery_id": ids[0], "box": [0, 0, 0.5, 1]},
        {"image": coded, "text": "make it big", "offset": 7, "k": 5},
        {"text": "blue", "offset": 100},
        {"text": "green", "filter": "price < 15 and kind = 'odd'", "fields": ["*"]},
        {"text": "green", "filter": "price is null", "fields": ["price"], "k": 24},
        {"text": "green", "filter": "id > 'q'"},
        {"text": "blue", "exclude": list(ids[:9]), "k": 3, "offset": 2},
        {"references": [{"gallery_id": ids[1], "weight": 2}, {"image": coded}], "text": "grey",
         "negative": {"text": "red", "weight": 0.25}},
        {"references": [{"gallery_id": ids[1]}, {"gallery_id": ids[2]}], "negative": {"gallery_id": ids[5]}},
    ]  # fmt: skip


@pytest.mark.parametrize("of", [2, 5, 64])
def test_searchers_answer_every_shape_of_query_as_one_index_does_to_the_id_and_the_score(
    place, of, picture, make_caller
):
    engine, _, whole = gathered(place, of)
    ids = whole.gallery.ids
    ask, ask_whole = (make_caller(DirectService(made, ServingSettings(max_k=50))) for made in (engine, whole))
    paths = ["facets", "facets?filter=price%20<%2015", "gallery?limit=500", "gallery?offset=5&limit=7", "examples",
             "gallery?offset=999", "facets?filter=nothing%20=%201", f"images/{ids[2]}", "images/none"]  # fmt: skip
    for path in paths:
        one, other = ask("GET", f"/v1/{path}"), ask_whole("GET", f"/v1/{path}")
        assert one.status_code == other.status_code and one.headers.get("etag") == other.headers.get("etag")
        assert one.content == other.content or one.headers["content-type"] != "image/png", path
        if one.status_code == 200 and path.startswith(("facets", "gallery")):
            assert one.json() == other.json(), path
    for body in bodies(picture, ids):
        one, other = ask.search(**body).json(), ask_whole.search(**body).json()
        assert one["hits"] == other["hits"] and one["searched"] == 1.0, body
    assert len(engine.gallery) == len(ids) and engine.gallery.ids == ids and "none" not in engine.gallery
    batch = {"queries": bodies(picture, ids)}
    one, other = (made("POST", "/v1/search:batch", json=batch).json() for made in (ask, ask_whole))
    assert [item["answer"]["hits"] for item in one["answers"]] == [item["answer"]["hits"] for item in other["answers"]]
    for body, status in (({"gallery_id": "none", "text": "x"}, 404), ({"text": "x", "filter": "colour = 1"}, 422)):
        assert ask.search(**body).status_code == ask_whole.search(**body).status_code == status


def test_queries_that_come_together_ask_each_searcher_once_for_what_they_show(filled, make_caller):
    made, _ = filled
    processes = Processes(3)
    args = ServeArgs(checkpoint=made.checkpoint, index=made.index)
    loaded = Loaded(args, use_of(made.index, made.checkpoint), Workers(), ServingSettings(), line=processes.line())
    loaded.retriever.follower.stop()
    asked = [{"text": f"blue {n % 5}", "k": 4, "fields": ["price"] * (n % 2)} for n in range(20)]
    processes.asked.clear()
    found = make_caller(loaded)("POST", "/v1/search:batch", json={"queries": asked}).json()["answers"]
    whole = make_caller(DirectService(SearchEngine.open(made.checkpoint, made.index)))
    wanted = whole("POST", "/v1/search:batch", json={"queries": asked}).json()["answers"]
    hits, others = ([hit for item in told for hit in item["answer"]["hits"]] for told in (found, wanted))
    scores = [[hit.pop("score") for hit in told] for told in (hits, others)]
    assert hits == others and scores[0] == pytest.approx(scores[1], abs=1e-6)  # texts are encoded in other batches
    assert sum(method in ("search", "shown") for _, method in processes.asked) <= 40  # of 20 * 3 + 20 * 3


def test_a_searcher_that_is_away_is_503_or_its_share_is_told_and_the_others_answers_are_right(
    filled, picture, make_caller, monkeypatch
):
    monkeypatch.setattr(gathering_module, "LOOK_S", 0.01)
    for place in ((filled[0].checkpoint, filled[0].index), (filled[0].checkpoint, filled[1])):
        for partial in (False, True):
            engine, processes, whole = gathered(place, 3, partial)
            ask = make_caller(DirectService(engine, ServingSettings(max_k=50)))
            ids, lost = whole.gallery.ids, 1
            body = {"text": "blue", "k": 50, "filter": "price is not null", "fields": ["price"]}
            wanted = [hit for hit in ask.search(**body).json()["hits"] if shard_of(hit["id"], 3) != lost]
            mine = [name for name in ids if shard_of(name, 3) == lost]
            processes.dead.add(lost)
            reply = ask.search(**body)
            again, page = ask.search(**body), ask("GET", "/v1/gallery?limit=500")
            assert ask.search(text="blue", gallery_id=mine[0]).status_code == 503
            assert ask("GET", f"/v1/images/{mine[0]}").status_code == 503
            if partial:
                share = 1 - len(mine) / len(ids)
                assert reply.json()["hits"] == wanted == again.json()["hits"]
                assert reply.json()["searched"] == pytest.approx(share, abs=1e-5)
                assert float(reply.headers["x-cirray-searched"]) == pytest.approx(share, abs=1e-5)
                assert [item["id"] for item in page.json()["items"]] == [name for name in ids if name not in mine]
                assert page.json()["searched"] == pytest.approx(share, abs=1e-5)
                ready = ask("GET", "/readyz").json()
                assert ready["status"] == "degraded" and "Searcher 2 of 3" in ready["faults"][0]
            else:
                assert [made.status_code for made in (reply, again, page, ask("GET", "/readyz"))] == [503] * 4
                assert reply.headers["retry-after"] == "2" and "Searcher 2 of 3" in reply.json()["detail"]
            before = len(processes.asked)
            ask.search(**body)
            assert (lost, "search") not in processes.asked[before:]
            processes.dead.clear()
            engine.follower.poll()
            found = ask.search(**body)
            assert found.json()["searched"] == 1 and "x-cirray-searched" not in found.headers


@pytest.mark.parametrize("path", ["facets", "gallery?limit=500", "gallery?limit=3&offset=7"])
def test_an_answer_tells_the_share_that_it_was_made_of_though_the_lost_searcher_is_back_by_then(
    filled, make_caller, monkeypatch, path
):
    monkeypatch.setattr(gathering_module, "_NEAR", 2)
    engine, processes, whole = gathered((filled[0].checkpoint, filled[0].index), 3, partial=True)
    ask, source = make_caller(DirectService(engine)), engine.gallery.source
    for lost in range(3):
        left = [name for name in whole.gallery.ids if shard_of(name, 3) != lost]
        processes.dead = {lost}
        with pytest.raises(AwayError):
            source.owner(next(name for name in whole.gallery.ids if name not in left), "check")
        some = source.some

        def back(calls, partial=False, some=some):
            found = some(calls, partial)
            processes.dead.clear()
            source._look()
            return found

        monkeypatch.setattr(source, "some", back)
        found = ask("GET", f"/v1/{path}").json()
        monkeypatch.setattr(source, "some", some)
        assert found["searched"] == pytest.approx(len(left) / 24, abs=1e-5)
        if path == "facets":
            assert found["images"] == len(left)
        else:
            offset, limit = found["offset"], found["limit"]
            assert [item["id"] for item in found["items"]] == left[offset : offset + limit]


def test_a_searcher_that_dies_between_the_search_and_what_is_shown_is_told_too(filled, make_caller):
    for partial in (False, True):
        engine, processes, whole = gathered((filled[0].checkpoint, filled[0].index), 2, partial)
        processes.lost.add((0, "shown"))
        reply = make_caller(DirectService(engine, ServingSettings(max_k=50))).search(text="blue", k=50)
        if not partial:
            assert reply.status_code == 503
            continue
        left = [name for name in whole.search("blue", k=50).ids if shard_of(name, 2) == 1]
        assert [hit["id"] for hit in reply.json()["hits"]] == left
        assert reply.json()["searched"] == pytest.approx(len(left) / 24, abs=1e-5)
        assert "x-cirray-searched" in reply.headers


def test_a_look_that_began_before_a_searcher_was_lost_does_not_bring_it_back(filled, monkeypatch):
    engine, processes, _ = gathered((filled[0].checkpoint, filled[0].index), 2, partial=True)
    source = engine.gallery.source
    ask = source._line.ask

    def looked(calls, timeout_s=None):
        found = ask(calls, timeout_s)
        if not processes.dead:
            processes.dead.add(0)
            source.every("ask", "facets", None)
        return found

    monkeypatch.setattr(source._line, "ask", looked)
    source.poll()
    assert source.there == {1}
    processes.dead.clear()
    monkeypatch.undo()
    source.poll()
    assert source.there == {0, 1}


def test_a_searcher_that_hangs_costs_one_search_its_time_and_no_other(filled):
    engine, processes, _ = gathered((filled[0].checkpoint, filled[0].index), 2, partial=True, timeout_s=0.3)
    processes.slow.add(0)
    begin = time.monotonic()
    assert 0 < engine.search("blue").searched < 1 and 0.3 <= time.monotonic() - begin < 2
    begin = time.monotonic()
    assert engine.search("blue").searched < 1 and time.monotonic() - begin < 0.3
    processes.slow.add(1)
    for _ in range(2):
        with pytest.raises(AwayError, match="Searchers 1, 2 of 2"):
            engine.search("blue")


def test_a_process_that_died_is_asked_once_more_since_another_may_have_its_place(filled):
    engine, processes, whole = gathered((filled[0].checkpoint, filled[0].index), 2)
    answer, processes.searchers[1].answer = processes.searchers[1].answer, lambda *call: 1 / 0

    def back(*call):
        processes.searchers[1].answer = answer
        raise RuntimeError("the actor died")

    processes.searchers[1].answer = back
    assert engine.search("blue") == whole.search("blue")


def test_a_write_is_shown_by_the_one_searcher_of_its_id_and_each_reads_only_its_rows(filled, tmp_path):
    made, _ = filled
    place = str(tmp_path / "gallery")
    run_gallery(GalleryRun(index=made.index, out=place))
    engine, processes, _ = gathered((made.checkpoint, place), 3)
    parts = [searcher._gallery(Key.of(place)) for searcher in processes.searchers]
    assert [[shard_of(name, 3) for name in part.ids] for part in parts] == [
        [n] * len(part) for n, part in enumerate(parts)
    ]
    table, row = Catalogue.open(place), np.ones((3, 8), np.float16)
    for name in ("one", "two", "three", "four"):
        table.write([Change(name, row)])
    table.write([Change("two"), Change(parts[0].ids[0])])
    table.compact(keep_s=0)
    ids = sorted({*(name for part in parts for name in part.ids[part is parts[0] :]), "one", "three", "four"})
    deadline, newest = time.monotonic() + 10, {table.refresh()}
    while {state.version for state in engine.gallery.states} != newest and time.monotonic() < deadline:
        engine.follower.poll()
    assert engine.gallery.ids == tuple(ids)
    assert engine.search("blue", k=99).ids == SearchEngine.open(made.checkpoint, place).search("blue", k=99).ids


def test_a_gallery_is_loaded_when_it_is_first_asked_for_and_let_go_when_nobody_asks(filled, monkeypatch):
    made, living = filled
    searcher, keys = Searcher(Shard(0, 2)), [Key.of(place) for place in (made.index, living)]
    MADE.append(searcher)
    for key in keys:
        assert searcher.state(key) is None
        deadline = time.monotonic() + 20
        while searcher.state(key) is None and time.monotonic() < deadline:
            time.sleep(0.01)
    assert searcher.answer("search", keys[0], np.ones((1, 8), np.float32), 3, None)[1].shape == (1, 3)
    monkeypatch.setattr("cirray.catalogue.searcher.KEPT_S", 0.05)
    time.sleep(0.1)
    searcher.state(keys[1])
    assert isinstance(searcher.answer("search", keys[0], np.ones((1, 8), np.float32), 3, None), AwayError)


def test_searchers_compare_each_file_of_an_index_once_and_find_any_that_is_damaged(filled, tmp_path, monkeypatch):
    place, read, digest = tmp_path / "index", [], store_module.whole_digest
    shutil.copytree(filled[0].index, place)
    monkeypatch.setattr(store_module, "whole_digest", lambda path: read.append(path.name) or digest(path))
    names = set(read_manifest(place).extra["files"])
    for number in range(3):
        Searcher(Shard(number, 3)).hold(Key.of(str(place)))
    assert sorted(read) == sorted(names) and len(names) > 3
    for name in names:
        data = (place / name).read_bytes()
        (place / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        found = []
        for number in range(3):
            try:
                Searcher(Shard(number, 3)).hold(Key.of(str(place)))
            except ArtifactError as error:
                found.append(str(error))
        assert any(repr(name) in text for text in found), name
        assert f"The file {name!r}" in str(
            problem_of(ServeArgs(checkpoint=filled[0].checkpoint, index=str(place), shards=3))
        )
        (place / name).write_bytes(data)


def test_what_cannot_be_gathered_is_said(filled, tmp_path, write_checkpoint):
    made, living = filled
    other = load_models(write_checkpoint(str(tmp_path / "other"), seed=3))
    line = Processes(2).line()
    with pytest.raises(IndexMismatchError, match="was built by encoder"):
        Gathering(living, other[0].index_digests, other[1].digest, line)
    with pytest.raises(ArtifactError, match="made again"):
        Searcher(Shard(0, 2)).hold(replace(Key.of(living), created="before"))
