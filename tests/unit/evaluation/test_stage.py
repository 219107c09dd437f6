"""The evaluation stage on a small world, with random towers: what it writes and what it refuses."""

import json
import runpy
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from made_artifacts import from_triplets, stage_of

from cirray.core.errors import ArtifactError, ConfigError, DataError, GenerationError, IndexMismatchError
from cirray.data.config import DataConfig, FolderConfig, ShapesConfig, TransformConfig
from cirray.data.images import open_image
from cirray.data.readers import read_dataset
from cirray.data.shapes.world import write_world
from cirray.evaluation.vectors import rank_vectors, run_job
from cirray.features.shards import FeatureShardWriter
from cirray.models.composed import build_retriever
from cirray.models.config import QFormerConfig, RetrieverConfig, VisionTowerConfig
from cirray.models.text import build_tokenizer
from cirray.models.towers.hf_blip2 import build_vision_tower
from cirray.pipelines.evaluation import evaluate, gallery
from cirray.pipelines.evaluation.compare import run_compare
from cirray.pipelines.evaluation.config import CompareRun
from cirray.pipelines.evaluation.evaluate import run_evaluate
from cirray.pipelines.evaluation.evaluate_config import EvaluateRun
from cirray.transforms import build_transform
from cirray.triplets.schema import REJECTED_SCHEMA
from cirray.triplets.store import write_part
from cirray.types import Triplet

LMM = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "lmm_stub.py")))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world") / "w"
    sizes = ShapesConfig(labelled_families=2, heldout_families=1, pool_families=1, gallery_references=4)
    write_world(sizes, root)
    return root


@pytest.fixture(scope="module")
def parts(world, tmp_path_factory):
    """URIs of a checkpoint, its features, and features of another tower."""
    root = tmp_path_factory.mktemp("parts")
    dataset = read_dataset(DataConfig(folder=FolderConfig(root=str(world))))
    towers = [tower(seed) for seed in (0, 1)]
    stage = stage_of(root / "pretrain", "checkpoint", {"steps": 2})
    tokenizer = build_tokenizer([query.modification for query in dataset.queries])
    sizes = QFormerConfig(width=16, layers=2, heads=2, queries=3, intermediate=16)
    build_retriever(RetrieverConfig(qformer=sizes, embed_dim=8, matching="trained"), tokenizer, 16).save(
        stage.local / "model"
    )
    towers[0].save(stage.local / "model" / "vision")
    rows = [{"step": step, "loss": 1.0 / step} for step in (1, 2)]
    (stage.local / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage.publish({"steps": 2})
    features = [write_features(root / f"features{n}", dataset, one) for n, one in enumerate(towers)]
    return {"checkpoint": str(root / "pretrain"), "features": features[0], "foreign": features[1]}


def tower(seed):
    torch.manual_seed(seed)
    sizes = VisionTowerConfig(width=16, layers=1, heads=2, intermediate=16)
    return build_vision_tower(sizes, TransformConfig())


def write_features(uri, dataset, one):
    stage = stage_of(uri, "features", {"tower": one.digest})
    transform, ids = build_transform(one.transform), sorted(dataset.images)
    pixels = np.stack([transform(open_image(dataset.images.path(name))) for name in ids])
    patches = one(torch.from_numpy(pixels)).numpy()
    FeatureShardWriter(stage.work_uri).write(0, ids, patches)
    extra = {"encoder_digest": one.digest, "transform_digest": transform.digest, "shape": list(patches.shape[1:])}
    stage.publish({"images": len(ids)}, extra=extra)
    return str(uri)


@pytest.fixture
def run(world, parts, tmp_path):
    def make(**fields):
        values = {"data": {"folder": {"root": str(world)}}, "checkpoint": parts["checkpoint"], "shown": 2,
                  "features": [parts["features"]], "out": str(tmp_path / "report"), "name": "MTST only"}  # fmt: skip
        return EvaluateRun.model_validate({**values, **fields})

    return make


def test_the_stage_writes_a_report_and_running_it_again_is_a_no_op(run, tmp_path):
    first = run_evaluate(run(ks=[1, 5]))
    assert first.kind == "report" and first.counts == {"queries": 32, "gallery": 36, "rows": 2}
    assert set(first.metrics) == {"R@1", "R@5", "intervals_95", "per_edit"}
    assert "image only" in first.extra["table"] and "own reference removed" in first.extra["protocol"]
    page = (tmp_path / "report" / "report.html").read_text()
    assert "MTST only" in page and "Training curve of pretrain" in page
    assert pq.read_table(tmp_path / "report" / "rankings.parquet").num_rows == 64
    changed = (tmp_path / "report" / "report.html").stat().st_mtime_ns
    assert run_evaluate(run(ks=[1, 5])) == first
    assert (tmp_path / "report" / "report.html").stat().st_mtime_ns == changed


def test_the_figures_do_not_depend_on_batch_sizes(run, tmp_path):
    small = run_evaluate(run(batch=5, html=False, out=str(tmp_path / "a")))
    large = run_evaluate(run(batch=500, html=False, out=str(tmp_path / "b")))
    assert small.metrics == large.metrics and not (tmp_path / "a" / "report.html").exists()


def test_features_of_another_tower_are_refused_in_words(run, parts, tmp_path):
    with pytest.raises(IndexMismatchError, match="made by vision tower .* needs those of tower"):
        run_evaluate(run(features=[parts["foreign"]]))
    assert not (tmp_path / "report").exists()


def test_a_stage_before_its_inputs_names_the_missing_one(run, tmp_path):
    with pytest.raises(ArtifactError, match="'checkpoint' at .*nowhere"):
        run_evaluate(run(checkpoint=str(tmp_path / "nowhere")))
    with pytest.raises(ArtifactError, match="'features' at .*nowhere"):
        run_evaluate(run(features=[str(tmp_path / "nowhere")]))


def test_a_data_set_without_queries_is_an_error(run, world, tmp_path):
    folder = {"root": str(world), "queries": str(tmp_path / "empty.csv")}
    (tmp_path / "empty.csv").write_text("reference,target,modification\n")
    with pytest.raises(DataError, match="has no queries"):
        run_evaluate(run(data={"folder": folder}))


def test_changed_queries_are_another_report_not_a_stale_one(run, world, tmp_path):
    lines = (world / "queries.jsonl").read_text().splitlines()
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(lines[:8]))
    config = run(data={"folder": {"root": str(world), "queries": str(path)}}, html=False)
    run_evaluate(config)
    path.write_text("\n".join(lines[:16]))
    with pytest.raises(ArtifactError, match="inputs.data"):
        run_evaluate(config)


def test_generated_texts_are_shown_with_their_verdict(run, world, tmp_path):
    dataset = read_dataset(DataConfig(folder=FolderConfig(root=str(world))))
    true = dataset.triplets[0]
    rows = [
        Triplet("a", true.reference_id, true.target_id, true.modification),
        Triplet("b", true.reference_id, true.target_id, "words without sense"),
    ]
    stage = stage_of(tmp_path / "texts", "triplets", {})
    write_part(stage.work_uri, "part-00000", from_triplets(rows), REJECTED_SCHEMA.empty_table())
    stage.publish({"triplets": 2})
    run_evaluate(run(triplets=[str(tmp_path / "texts")], judge=str(world)))
    page = (tmp_path / "report" / "report.html").read_text()
    assert "✓ exact" in page and "✗ not understood" in page and "Of the 2 shown, 1 are exact" in page


def test_a_history_that_is_not_there_is_an_error(run, parts):
    with pytest.raises(ArtifactError, match="holds no history.jsonl"):
        run_evaluate(run(histories=[parts["features"]]))


def test_a_page_of_all_queries_and_intervals_come_on_request(run, tmp_path):
    plain = run_evaluate(run(html=False))
    assert not (tmp_path / "report" / "browse.html").exists()
    done = run_evaluate(run(html=False, browse=4, intervals=True, out=str(tmp_path / "browsed")))
    page = (tmp_path / "browsed" / "browse.html").read_text()
    assert "32 of 32 queries are listed" in page and "pictures are embedded for 4 of them" in page
    assert done.metrics["R@1"] == plain.metrics["R@1"] and set(done.metrics["intervals_95"]) >= {"R@1", "R@5"}


def test_a_report_can_be_scored_and_browsed_again(run, world, tmp_path):
    from cirray.pipelines.evaluation.browse import run_browse
    from cirray.pipelines.evaluation.config import BrowseRun, ScoreRun
    from cirray.pipelines.evaluation.score import run_score

    done, data = run_evaluate(run(html=False, top_k=36)), {"folder": {"root": str(world)}}
    scored = run_score(ScoreRun.model_validate({"data": data, "ranks": str(tmp_path / "report")})).result
    assert {name: done.metrics[name] for name in scored.metrics} == scored.metrics
    page = tmp_path / "page.html"
    fields = {"data": data, "run": str(tmp_path / "report"), "row": "image only", "other": str(tmp_path / "report")}
    run_browse(BrowseRun.model_validate({**fields, "other_row": "MTST only", "out": str(page)}))
    assert "image only and MTST only on" in page.read_text()


def test_gallery_vectors_of_an_index_give_the_figures_of_encoding_them_here(run, parts, world, tmp_path, monkeypatch):
    from cirray.index.config import IndexBackend
    from cirray.pipelines.cluster.config import RayConfig
    from cirray.pipelines.search.config import IndexRun
    from cirray.pipelines.search.index import run_index

    index = IndexRun(
        checkpoint=parts["checkpoint"], features=(parts["features"],), out=str(tmp_path / "index"),
        data=DataConfig(folder=FolderConfig(root=str(world))), index=IndexBackend(kind="exact"), thumbnail_size=0,
        ray=RayConfig(enabled=False),
    )  # fmt: skip
    run_index(index)
    plain = run_evaluate(run(html=False))
    mapped = run_evaluate(run(html=False, index=index.out, out=str(tmp_path / "mapped")))
    asked = []

    @contextmanager
    def tasks(ray, gpus):  # in place of Ray's
        def each(question, jobs, scores_P):
            asked.append(len(jobs))
            return [run_job(question, job, scores_P) for job in jobs]

        yield each

    monkeypatch.setattr("cirray.pipelines.cluster.shards.ray_runner", tasks)
    cut = run_evaluate(run(html=False, index=index.out, out=str(tmp_path / "cut"), parts=3))
    assert cut.metrics == mapped.metrics and set(asked) == {3}
    with pytest.raises(ValueError, match=r"parts 3 are pieces of an index's vectors; name one \(cirray index\)"):
        run(parts=3)
    assert mapped.metrics["R@50"] == plain.metrics["R@50"] and mapped.counts == plain.counts
    assert mapped.metrics["R@5"] == pytest.approx(plain.metrics["R@5"], abs=0.1), "fp16 vectors move few ranks"
    rows = [pq.read_table(tmp_path / name / "rankings.parquet").to_pylist()[-1] for name in ("report", "mapped")]
    assert rows[0]["scores"] == pytest.approx(rows[1]["scores"], abs=2e-3) and len(rows[1]["ids"]) == 35


def test_a_large_gallery_is_encoded_in_parts_that_a_killed_run_keeps(run, tmp_path, monkeypatch):
    plain = run_evaluate(run(html=False))
    encoded, killed = [], []

    class Encoding(gallery.EncodeGallery):
        def __call__(self, columns):
            encoded.append(int(columns["part"][0]))
            return super().__call__(columns)

    def ranked(*given, **settings):
        if len(killed) == 1:  # the row "image only" comes first
            killed.append(given)
            raise KeyboardInterrupt
        killed.append(given)
        return rank_vectors(*given, **settings)

    monkeypatch.setattr(gallery, "_IMAGES", 16)
    monkeypatch.setattr(gallery, "EncodeGallery", Encoding)
    monkeypatch.setattr(evaluate, "rank_vectors", ranked)
    large = run(html=False, ray_from=36, ray={"enabled": False}, out=str(tmp_path / "large"))
    with pytest.raises(KeyboardInterrupt):
        run_evaluate(large)
    parts = run_evaluate(large)
    assert encoded == [0, 1, 2], "every part once"
    assert [len(file.ids) for file in killed[-1][2]] == [16, 16, 4]
    assert parts.metrics == plain.metrics and parts.extra["table"] == plain.extra["table"]
    rows = [pq.read_table(tmp_path / name / "rankings.parquet").to_pylist() for name in ("report", "large")]
    assert [row["ids"] for row in rows[0]] == [row["ids"] for row in rows[1]] and len(rows[0]) == 64
    assert not (tmp_path / "large" / "gallery").exists()


def test_an_index_of_another_checkpoint_is_refused(run, tmp_path):
    stage = stage_of(tmp_path / "index", "index", {})
    (stage.local / "meta.json").write_text(json.dumps({"meta": {"encoder_digest": "0" * 32}}))
    (stage.local / "ids.json").write_text("[]")
    stage.publish({"images": 0})
    with pytest.raises(IndexMismatchError, match="was built by encoder 000000000000"):
        run_evaluate(run(html=False, index=str(tmp_path / "index")))


def test_a_checkpoint_ranks_a_submission_without_targets(run, parts, world, monkeypatch, tmp_path):
    """The small gallery has too few images for a server, which is said only after everything has been ranked."""
    import dataclasses

    from cirray.pipelines.evaluation import submit
    from cirray.pipelines.evaluation.evaluate_config import SubmitRun

    whole = read_dataset(DataConfig(folder=FolderConfig(root=str(world))))
    blind = tuple(dataclasses.replace(query, target_ids=()) for query in whole.queries)
    monkeypatch.setattr(submit, "read_dataset", lambda data, **_: dataclasses.replace(whole, queries=blind))
    fields = {"data": {}, "checkpoint": parts["checkpoint"], "kind": "cirr", "out": str(tmp_path / "out")}
    with pytest.raises(DataError, match=r"holds 35 images \(reference left out\); cirr-recall needs 50"):
        submit.run_submit(SubmitRun.model_validate({**fields, "features": [parts["features"]]}))
    with pytest.raises(IndexMismatchError, match="made by vision tower"):
        submit.run_submit(SubmitRun.model_validate({**fields, "features": [parts["foreign"]]}))
    with pytest.raises(DataError, match="has no target.*cirray submit"):
        monkeypatch.setattr("cirray.pipelines.evaluation.evaluate.read_dataset", submit.read_dataset)
        run_evaluate(run())


def test_a_cut_emoji_and_a_null_do_not_end_an_evaluation(run, world):
    rows = [json.loads(line) for line in (world / "queries.jsonl").read_text().splitlines()]
    said = [{**rows[0], "modification": "make it blue \ud83d"}, {**rows[1], "modification": None}, *rows[2:]]
    (world / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    folder = {"root": str(world), "queries": "odd.jsonl"}
    report = run_evaluate(run(data={"folder": folder}, html=False, browse=10))
    assert report.counts["queries"] == len(rows) - 1


def lmm(stub, top=3):
    engine = {"settings": {"endpoints": [stub.url], "model": "tiny-vl", "open_requests": 1}}
    return {"kind": "lmm", "top": top, "settings": {"engine": engine, "side": 32}}


def points(body, number):
    return {"score": sum(body["messages"][0]["content"][3]["image_url"]["url"].encode()) % 11}


def asked_of(stub, begin=0):
    return [str(body["messages"]) for body in stub.bodies[begin:]]


def test_a_stopped_evaluation_asks_a_large_model_nothing_twice(run, tmp_path):
    def dies(body, number):
        return (401, {"error": "no"}) if number > 70 else points(body, number)

    with LMM.Stub(points) as stub:
        whole = run_evaluate(run(rerank=lmm(stub), batch=16, html=False, out=str(tmp_path / "whole")))
        asked = asked_of(stub)
        assert len(asked) == len(set(asked)) == 3 * 32
    with LMM.Stub(dies) as stub:
        with pytest.raises(GenerationError, match="refuses us"):
            run_evaluate(run(rerank=lmm(stub), batch=16, html=False))
        before = len(stub.bodies)
        stub.answers = points
        with pytest.raises(ArtifactError, match=r"half-written by a different run \(rerank.top.*--restart"):
            run_evaluate(run(rerank=lmm(stub, top=4), batch=16, html=False))
        made = run_evaluate(run(rerank=lmm(stub), batch=16, html=False))
        assert made.metrics == whole.metrics and made.extra["table"] == whole.extra["table"]
        again = set(asked_of(stub)[:before]) & set(asked_of(stub, before))
        assert len(stub.bodies) - before == 3 * 32 - 48 and len(again) == before - 48 > 0  # of the piece that was open
    assert not (tmp_path / "report" / "answers").exists()


def test_rows_that_ask_a_large_model_the_same_ask_once(parts, world, tmp_path):
    with LMM.Stub(points) as stub:
        both = CompareRun(
            data={"folder": {"root": str(world)}}, features=[parts["features"]], out=str(tmp_path / "compared"),
            checkpoints={"one": parts["checkpoint"], "other": parts["checkpoint"]},
            row_rerank={"one": lmm(stub), "other": lmm(stub)},
        )  # fmt: skip
        made = run_compare(both)
    assert len(stub.bodies) == 3 * 32 and made.metrics["one"] == made.metrics["other"]


def test_a_reranked_row_stands_beside_the_plain_one_and_is_what_the_stage_gives_alone(run, parts, tmp_path):
    matching = {"kind": "matching", "top": 10, "settings": {"weight": 30.0}}
    alone = run_evaluate(run(rerank=matching, html=False))
    assert alone.counts["unscored"] == 0
    assert alone.extra["rerank"] == "the first 10 answers scored again (matching), weight 30"
    both = CompareRun(
        data=run().data, features=(parts["features"],), out=str(tmp_path / "both"),
        checkpoints={"plain": parts["checkpoint"], "reranked": parts["checkpoint"]},
        row_rerank={"reranked": matching},
    )  # fmt: skip
    found = run_compare(both).metrics
    first = [(row["R@1"], row["R@5"]) for row in (found["reranked"], alone.metrics, found["plain"])]
    assert first[0] == first[1] != first[2]
    assert found["reranked"]["R@10"] == found["plain"]["R@10"]  # within the first ten, places are changed alone
    with pytest.raises(ConfigError, match="row_rerank.*'other'"):
        run_compare(both.model_copy(update={"row_rerank": {"other": both.row_rerank["reranked"]}}))
    with pytest.raises(ValueError, match="leave out index, or rerank"):
        run(rerank="matching", index="somewhere")
