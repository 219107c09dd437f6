"""The first answers scored again: by the matching head and by a large model, against the same thing written out."""

import asyncio
import runpy
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import torch

import cirray
from cirray.core.config import validate
from cirray.core.errors import ConfigError, GenerationError
from cirray.data.benchmark import Protocol
from cirray.data.pixels import thumbnail
from cirray.evaluation.evaluate import evaluate_retriever, score_rows
from cirray.evaluation.reranked import DataSights, RerankedEvaluation
from cirray.generators.engines import http
from cirray.generators.rerankers import lmm as lmm_reranker
from cirray.generators.rerankers.base import Asked, Reranking
from cirray.generators.rerankers.config import RerankChoice
from cirray.image_text import load_models
from cirray.pipelines.search.config import SearchRun
from cirray.pipelines.search.search import run_search
from cirray.queries import Further, Reference
from cirray.search_engine import SearchEngine
from cirray.serving.api import make_api
from cirray.serving.config import ServeArgs
from cirray.serving.service import DirectService
from cirray.types import Query

FIXTURES = Path(__file__).parents[1] / "fixtures"
TINY = SimpleNamespace(**runpy.run_path(str(FIXTURES / "tiny_service.py")))
LMM = SimpleNamespace(**runpy.run_path(str(FIXTURES / "lmm_stub.py")))
TEXTS = ["make it a big blue circle", "turn the small red star green", "add the yellow square", "remove grey"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(http, "FIRST_PAUSE_S", 0.01)
    monkeypatch.delenv("CIRRAY_LMM_KEY", raising=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return TINY.make(tmp_path_factory.mktemp("tiny"), matching="trained")


@pytest.fixture(scope="module")
def plain(tiny):
    return SearchEngine.open(tiny.checkpoint, tiny.index)


def choice(kind, top=6, **settings):
    return validate(RerankChoice, {"kind": kind, "top": top, "settings": settings})


def engine(tiny, kind, top=6, **settings):
    return SearchEngine.open(tiny.checkpoint, tiny.index, rerank=choice(kind, top, **settings))


def lmm(*urls, **fields):
    return {"engine": {"settings": {"endpoints": list(urls), "model": "tiny-vl", "tries": 2, **fields}}}


def odds_alone(model, text, patches_PW):
    """The head's log-odds for one text and one picture, written out."""
    words, released = model.tokenize([text]), model.matching_head.variant == "matching"
    mask = words.mask_BT.clone()
    mask[:, 0] *= not released
    with torch.no_grad():
        found = model.qformer.image_and_text(patches_PW[None], type(words)(words.ids_BT, mask))
        tokens_TW = found.text_BTD[0][mask[0].bool()] if released else found.queries_BQD[0]
        wrong, right = model.matching_head.classifier(tokens_TW).mean(dim=0).tolist()
        return right - wrong


@pytest.mark.parametrize("variant", ["matching", "matching_hard"])
@pytest.mark.parametrize("top", [2, 6, 100])
def test_a_search_reranked_by_the_matching_head_is_the_twin_written_out(tiny, plain, top, variant):
    found = engine(tiny, "matching", top, weight=30.0)
    model, gallery = found.encoder, plain.gallery
    model.matching_head.trains_as(variant)
    for text, reference in zip(TEXTS, ["plain/02", "plain/04", "a b/pïc 03", "plain/06"], strict=True):
        usual = plain.search(text, gallery_id=reference, k=23)
        scores = [
            score / float(model.temperature.detach())
            + 30 * odds_alone(model, text, torch.from_numpy(np.array(gallery.patches_NPW[gallery.row(name)])).float())
            for name, score in zip(usual.ids[:top], usual.scores, strict=False)
        ]
        order = sorted(range(len(scores)), key=lambda at: -scores[at])
        expected = [usual.ids[at] for at in order] + list(usual.ids[top:])
        answer = found.search(text, gallery_id=reference, k=23)
        assert list(answer.ids) == expected and answer.times.rerank > 0 == usual.times.rerank
        assert dict(zip(answer.ids, answer.scores, strict=True)) == pytest.approx(
            dict(zip(usual.ids, usual.scores, strict=True))
        )
    assert list(answer.ids) != list(usual.ids)


def test_a_weight_that_training_chose_is_used_and_a_head_that_is_no_help_changes_nothing(tiny, plain, caplog):
    model = load_models(tiny.checkpoint)[0]
    model.matching_head.trains_as("matching_hard")
    with pytest.raises(ConfigError, match="No weight was chosen for this checkpoint's matching head"):
        Reranking(choice("matching"), model)
    model.matching_head.choose(0.5)
    assert Reranking(choice("matching", 6), model).describe() == (
        "the first 6 answers scored again (matching), weight 0.5"
    )
    assert "weight 2" in Reranking(choice("matching", weight=2.0), model).describe() and not caplog.text
    model.matching_head.choose(0.0)
    with caplog.at_level("WARNING"):
        reranking = Reranking(choice("matching", 6), model)
    assert "keep the retriever's order: the matching head was no help" in caplog.text
    asked = Asked(TEXTS[0], ("a", "b", "c"), (0.9, 0.5, 0.5), sights=None, reference="x")
    assert reranking.orders([asked])[0].tolist() == [1, 0, 0]


def test_pages_of_reranked_answers_join_and_what_is_left_out_stays_out(tiny):
    found = engine(tiny, "matching", 7, weight=30.0)
    whole = found.search(TEXTS[0], gallery_id="plain/02", k=12).ids
    pages = [found.search(TEXTS[0], gallery_id="plain/02", k=4, further=Further(offset=at)).ids for at in (0, 4, 8)]
    assert sum(pages, ()) == whole and "plain/02" not in whole
    without = found.search(TEXTS[0], gallery_id="plain/02", k=12, further=Further(exclude=(whole[0],))).ids
    assert whole[0] not in without and len(without) == 12
    several = Further(references=(Reference(gallery_id="plain/02"), Reference(gallery_id="plain/04")))
    assert len(found.search(TEXTS[0], k=3, further=several).ids) == 3


def test_queries_of_one_batch_are_reranked_each_by_its_own(tiny):
    found = engine(tiny, "matching", 6, batch=4, weight=30.0)
    asked = [found.prepare(text, gallery_id="plain/02", k=8) for text in TEXTS]
    asked.append(found.prepare(gallery_id="plain/02", k=8))
    answers = found.search_many(asked)
    assert [answer.ids for answer in answers[:4]] == [
        found.search(text, gallery_id="plain/02", k=8).ids for text in TEXTS
    ]
    assert answers[4].ids == SearchEngine.open(tiny.checkpoint, tiny.index).search(gallery_id="plain/02", k=8).ids


def test_a_gallery_without_stored_patches_is_reranked_by_its_pictures(tiny, plain, tmp_path):
    lean = TINY.make(tmp_path, matching="trained", reference_features_gb=0.0, thumbnail_size=64)
    one = engine(lean, "matching", 6, weight=30.0).search(TEXTS[0], image=tiny.images / "plain/02.png", k=6)
    other = engine(tiny, "matching", 6, weight=30.0).search(TEXTS[0], image=tiny.images / "plain/02.png", k=6)
    assert one.ids == other.ids


class Points:
    """Gives each picture the points of a table, by its size."""

    def __init__(self, points):
        self.points, self.failing = points, set()

    def __call__(self, body, number):
        size = LMM.pictures_of(body)[1]
        if size in self.failing:
            return (400, {"error": "no"}, {})
        return {"score": self.points[size]} if number % 2 else f"I would say: {self.points[size]}"


def test_a_large_model_sees_both_pictures_and_its_points_order_the_answers(tiny, plain):
    usual = plain.search(TEXTS[0], gallery_id="plain/02", k=8)
    sizes = {(40 + number, 32): int(np.random.default_rng(number).integers(0, 4)) for number in range(24)}
    names = {name: (40 + int(name[-2:]), 32) for name in plain.gallery.ids}
    with LMM.Stub(Points(sizes)) as stub:
        found = engine(tiny, "lmm", 5, **lmm(stub.url)).search(TEXTS[0], gallery_id="plain/02", k=8)
    order = sorted(range(5), key=lambda at: -sizes[names[usual.ids[at]]])
    assert list(found.ids) == [usual.ids[at] for at in order] + list(usual.ids[5:])
    assert len(stub.bodies) == 5 and all(LMM.pictures_of(body)[0] == (42, 32) for body in stub.bodies)
    assert (
        TEXTS[0] in stub.texts()[0]
        and "score" in stub.bodies[0]["response_format"]["json_schema"]["schema"]["required"]
    )


def test_a_picture_is_prepared_once_for_all_queries_and_a_sent_one_has_a_name_of_its_own(tiny, monkeypatch):
    made = []
    monkeypatch.setattr(lmm_reranker, "thumbnail", lambda image, side: made.append(1) or thumbnail(image, side))
    with LMM.Stub(lambda body, number: {"score": 5}) as stub:
        found = engine(tiny, "lmm", 23, **lmm(stub.url, picture_ids=True))
        for text in TEXTS:
            found.search(text, gallery_id="plain/02", k=3)
        assert len(stub.bodies) == 4 * 23 and len(made) == 24
        found.search(TEXTS[0], image=tiny.images / "plain/04.png", k=3)
    names = {body["messages"][0]["content"][1]["uuid"] for body in stub.bodies}
    assert len(names) == 2 and len(made) == 25


def test_a_query_whose_answers_cannot_be_scored_keeps_its_order(tiny, plain, caplog):
    usual = plain.search(TEXTS[0], gallery_id="plain/02", k=8)
    points = Points({(40 + number, 32): number % 10 for number in range(24)})
    points.failing = {(40 + int(usual.ids[2][-2:]), 32)}
    with LMM.Stub(points) as stub:
        found = engine(tiny, "lmm", 5, **lmm(stub.url))
        assert found.search(TEXTS[0], gallery_id="plain/02", k=8).ids == usual.ids
        assert found.search("remove grey", k=3).ids == plain.search("remove grey", k=3).ids  # there is no reference
    with caplog.at_level("WARNING"):
        again = found.search(TEXTS[0], gallery_id="plain/02", k=8)
    assert again.ids == usual.ids and "keep the retriever's order" in caplog.text


def test_what_is_missing_is_said_at_the_start(tiny, tmp_path):
    bare = TINY.write_checkpoint(tmp_path / "bare")
    encoder = load_models(bare)[0]
    with pytest.raises(ConfigError, match="needs a matching head, which this retriever .kind 'qformer'. lacks"):
        Reranking(choice("matching"), encoder)
    with pytest.raises(GenerationError, match="No server answers"):
        engine(tiny, "lmm", **lmm("http://127.0.0.1:9/v1", timeout_s=1))
    for wrong, words in (
        ({"kind": "lmm"}, "engine"),
        ({"kind": "clip"}, "'clip'"),
        ({"kind": "matching", "top": 1}, "top"),
    ):
        with pytest.raises(ConfigError, match=words):
            validate(RerankChoice, wrong)
    with pytest.raises(ValueError, match="leave out rerank, or url"):
        SearchRun(rerank="matching", url="http://127.0.0.1:8000", text="x")


def test_the_command_and_the_service_give_the_same_reranked_answers(tiny, tmp_path):
    run = SearchRun(
        checkpoint=tiny.checkpoint, index=tiny.index, id="plain/02", text=TEXTS[0], k=5,
        rerank={"kind": "matching", "settings": {"weight": 30.0}},
        out=str(tmp_path / "page.html"),
    )  # fmt: skip
    shown = [row.id for row in run_search(run).results]
    app = make_api(
        lambda: DirectService(SearchEngine.open(tiny.checkpoint, tiny.index, rerank=run.rerank)), ServeArgs()
    )

    async def ask():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/v1/search", json={"text": TEXTS[0], "gallery_id": "plain/02", "k": 5})

    body = asyncio.run(ask()).json()
    assert [hit["id"] for hit in body["hits"]] == shown and body["times_ms"]["rerank"] > 0


class Table:
    """Random tokens by id."""

    def __init__(self, ids):
        self.rows = {name: row for row, name in enumerate(ids)}
        self.tokens = np.random.default_rng(0).normal(size=(len(ids), 4, 16)).astype(np.float32)

    def get(self, ids):
        return self.tokens[[self.rows[name] for name in ids]]

    def __contains__(self, name):
        return name in self.rows


@pytest.mark.parametrize("top", [2, 5, 40])
def test_an_evaluation_with_a_reranker_counts_what_the_twin_counts(tiny, top):
    model = load_models(tiny.checkpoint)[0]
    ids = [f"im-{number:02d}" for number in range(30)]
    table = Table(ids)
    queries = [Query(f"q{n}", ids[n], TEXTS[n % 4], (ids[(7 * n + 3) % 30],)) for n in range(12)]
    rerank = RerankedEvaluation(Reranking(choice("matching", top, weight=30.0), model), DataSights(table))
    found = evaluate_retriever(model, table, queries, ids, Protocol("toy", ks=(1, 5)), batch=5, top_k=8, rerank=rerank)
    gallery = model.encode_gallery(torch.from_numpy(table.tokens))
    for query, ranking, rank in zip(queries, found.rankings, found.ranks, strict=True):
        state = model.encode_reference(torch.from_numpy(table.get([query.reference_id])))
        scores_N = score_rows(
            model, model.compose(state, model.tokenize([query.modification])).detach(), gallery.detach()
        )[0]
        order = [ids[at] for at in np.argsort(-scores_N, kind="stable") if ids[at] != query.reference_id]
        points = {
            name: scores_N[table.rows[name]] / float(model.temperature)
            + 30 * odds_alone(model, query.modification, torch.from_numpy(table.get([name])[0]))
            for name in order[:top]
        }
        expected = sorted(order[:top], key=lambda name: -points[name]) + order[top:]
        assert list(ranking.ids) == expected[:8] and rank == expected.index(query.target_ids[0])
        assert ranking.scores == pytest.approx([scores_N[table.rows[name]] for name in ranking.ids], abs=1e-5)


def test_equal_points_are_broken_by_the_retriever_and_equal_both_count_against_it(tiny):
    class Even:
        told = ""

        def scores(self, asked):
            return [np.ones(len(item.ids)) for item in asked]

    model = load_models(tiny.checkpoint)[0]
    ids = [f"im-{number:02d}" for number in range(9)]
    table = Table(ids)
    table.tokens[4] = table.tokens[5]
    reranking = Reranking(choice("matching", 8, weight=1.0), model)
    reranking._reranker = Even()
    queries = [Query("q", ids[0], TEXTS[0], (name,)) for name in ids[1:]]
    rerank = RerankedEvaluation(reranking, DataSights(table))
    one = evaluate_retriever(model, table, queries, ids, Protocol("toy", ks=(1,)), rerank=rerank)
    other = evaluate_retriever(model, table, queries, ids, Protocol("toy", ks=(1,)))
    assert one.ranks.tolist() == other.ranks.tolist() and one.rankings == other.rankings


def test_a_gallery_opened_with_a_reranker_answers_as_the_engine_with_it(tiny, tmp_path):
    settings = {"weight": 30.0}
    expected = engine(tiny, "matching", 6, **settings).search(TEXTS[0], gallery_id="plain/02", k=8).ids
    found = cirray.load(tiny.index, rerank={"kind": "matching", "top": 6, "settings": settings}).search(
        "plain/02", TEXTS[0], k=8
    )
    assert tuple(row.id for row in found) == expected
    made = cirray.load(tiny.checkpoint).index(
        tiny.images, tmp_path / "index", rerank={"kind": "matching", "settings": settings}, root=str(tmp_path)
    )
    top = engine(tiny, "matching", 50, **settings).search(TEXTS[0], gallery_id="plain/02", k=8).ids
    assert tuple(row.id for row in made.search("plain/02", TEXTS[0], k=8)) == top
    with pytest.raises(ConfigError, match="rerank is a gallery's, and .* is no index"):
        cirray.load(tiny.checkpoint, rerank="matching")
    for wrong, words in (("clip", "'clip'"), ({"kind": "matching", "tops": 3}, "tops")):
        with pytest.raises(ConfigError, match=words):
            cirray.load(tiny.index, rerank=wrong)


def test_patches_of_a_batch_of_answers_are_fetched_together(tiny):
    class Counted(DataSights):
        def patches(self, ids):
            fetched.append(len(ids))
            return super().patches(ids)

    model, fetched = load_models(tiny.checkpoint)[0], []
    ids = [f"im-{number:02d}" for number in range(30)]
    queries = [Query(f"q{n}", ids[n], TEXTS[n % 4], (ids[n + 1],)) for n in range(8)]
    rerank = RerankedEvaluation(Reranking(choice("matching", 10, batch=16, weight=1.0), model), Counted(Table(ids)))
    evaluate_retriever(model, Table(ids), queries, ids, Protocol("toy", ks=(1,)), rerank=rerank)
    assert fetched == [16] * 5
