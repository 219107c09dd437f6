"""Training in this process: what a run reads, writes, refuses and resumes. (On Ray: tests/integration.)"""

import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_artifacts import from_triplets, stage_of
from safetensors.torch import load_file, save_file

from cirray.core.config import validate
from cirray.core.errors import ArtifactError, ConfigError, DataError, IndexMismatchError
from cirray.generators.rerankers.matching import MatchingReranker
from cirray.image_text import load_models
from cirray.pipelines.features.config import EmbedRun, TowersRun
from cirray.pipelines.features.embed import run_embed
from cirray.pipelines.features.towers import run_towers
from cirray.pipelines.training import inputs
from cirray.pipelines.training.config import FinetuneRun, PretrainRun, TrainRun
from cirray.pipelines.training.inputs import read_inputs
from cirray.pipelines.training.start import start_retriever
from cirray.pipelines.training.train import run_train
from cirray.training.loop import Callback
from cirray.triplets.schema import rejected_table
from cirray.triplets.store import write_part

TINY = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "tiny_training.py"))
BLIP2 = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "small_blip2.py"))


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    return TINY["make"](tmp_path_factory.mktemp("t"))


def make_run(fields, out, cls=TrainRun, training=None, **changes):
    tree = {**fields, "out": str(out), **changes, "training": {**fields["training"], **(training or {})}}
    return validate(cls, tree)


def write_triplets(place, rows):
    stage = stage_of(str(place), "triplets", {})
    write_part(stage.work_uri, "part-00000", from_triplets(rows), rejected_table([]))
    stage.publish({"triplets": len(rows)})
    return str(place)


@pytest.fixture(scope="module")
def labelled(fields):
    return read_inputs(validate(TrainRun, {**fields, "out": "x"})).triplets


@pytest.fixture(scope="module")
def trained(fields, tmp_path_factory):
    out = tmp_path_factory.mktemp("c") / "checkpoint"
    return out, run_train(make_run(fields, out, validation={"every": 10}))


def test_one_picture_that_cannot_be_embedded_costs_its_rows_and_no_training(fields, labelled, tmp_path):
    world = tmp_path / "world"
    shutil.copytree(Path(fields["data"]["folder"]["root"]), world)
    broken = labelled[0].target_id
    (world / "labelled" / f"{broken}.png").write_bytes(b"no picture")
    data = {"folder": {"root": str(world)}}
    embed = {"data": data, "parts": ["labelled"], "tower": fields["towers"], "out": str(tmp_path / "features")}
    assert run_embed(validate(EmbedRun, {**embed, "ray": {"enabled": False}})).counts["rejected"] == 1
    run = make_run(
        {**fields, "data": data, "features": [str(tmp_path / "features")]}, tmp_path / "c", training={"steps": 2}
    )
    kept = read_inputs(run).triplets
    assert set(labelled) - set(kept) == {row for row in labelled if broken in (row.reference_id, row.target_id)}
    assert run_train(run).kind == "checkpoint"


def rows_of(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_step(self, state, row):
        if state.step == self.step:
            raise KeyboardInterrupt


def test_a_checkpoint_holds_model_tower_history_curves_and_the_whole_configuration(trained):
    out, manifest = trained
    encoder, vision, transform = load_models(str(out))
    assert encoder.patch_width == vision.width == 16 and transform.size == 48
    history = rows_of(out)
    assert [row["step"] for row in history] == [5, 10, 15, 20]
    assert ["val_R@1" in row for row in history] == [False, True, False, True]
    assert manifest.metrics["val_R@10"] == history[-1]["val_R@10"] > 0
    assert list((out / "tensorboard").iterdir()) and not (out / "checkpoints").exists()
    assert manifest.counts == {"triplets": 96, "steps": 20, "human": 96}
    assert manifest.config["training"]["batch"] == 8


def test_a_finished_run_is_not_trained_again(fields, trained):
    again = run_train(make_run(fields, trained[0], validation={"every": 10}), [StopAt(1)])
    assert again == trained[1]


def test_a_stopped_run_goes_on_and_ends_where_the_unbroken_one_does(fields, trained, tmp_path):
    run = make_run(fields, tmp_path / "c", validation={"every": 10})
    with pytest.raises(KeyboardInterrupt):
        run_train(run, [StopAt(13)])
    seen = []

    class Seen(Callback):
        def on_start(self, state):
            seen.append(state.step)

    manifest = run_train(run, [Seen()])
    assert seen == [10]
    assert rows_of(tmp_path / "c") == rows_of(trained[0])
    assert manifest.metrics == trained[1].metrics


def test_labels_takes_whole_families_from_the_front(fields):
    run = make_run(fields, "x", labels=6)
    rows = read_inputs(run).triplets
    assert len(rows) == 8 and len({row.group_id for row in rows}) == 2


def test_sources_are_mixed_and_counted_and_keep_their_tags(fields, labelled, tmp_path):
    generated = [replace(row, triplet_id=f"g{at}", source="mtst") for at, row in enumerate(labelled[:24])]
    uri = write_triplets(tmp_path / "t", generated)
    inputs = read_inputs(make_run(fields, "x", labels=8, triplets=[uri]))
    assert inputs.sources == {"mtst": 24, "human": 8}
    assert read_inputs(make_run(fields, "x", labels=0, triplets=[uri])).sources == {"mtst": 24}


def test_reverse_texts_join_by_reference_and_target(fields, labelled, tmp_path):
    swapped = [
        replace(
            row, triplet_id=f"r{at}", reference_id=row.target_id, target_id=row.reference_id, modification=f"undo {at}"
        )
        for at, row in enumerate(labelled[:10])
    ]
    uri = write_triplets(tmp_path / "t", swapped)
    rows = read_inputs(make_run(fields, "x", reverse_texts=[uri])).triplets
    assert [row.reverse_modification for row in rows[:10]] == [f"undo {at}" for at in range(10)]
    assert {row.reverse_modification for row in rows[10:]} == {None}


def test_finetuning_starts_from_a_checkpoint_and_its_vocabulary(fields, trained, tmp_path):
    changes = {"init": str(trained[0]), "temperature": 0.03, "labels": 16}
    tree = {name: value for name, value in fields.items() if name != "model"}
    run = make_run(
        tree, tmp_path / "f", training={"steps": 1, "objective": "ptha", "log_every": 1, "batch": 4}, **changes
    )
    manifest = run_train(run)
    assert rows_of(tmp_path / "f")[0]["temperature"] == pytest.approx(0.03)
    assert set(manifest.inputs) >= {"init", "features 0", "data"}
    words = load_models(str(trained[0]))[0].tokenizer.get_vocab()
    assert load_models(str(tmp_path / "f"))[0].tokenizer.get_vocab() == words


def test_model_sizes_beside_a_checkpoint_are_refused(fields, trained, tmp_path):
    with pytest.raises(ConfigError, match="encoder.settings.embed_dim is 12"):
        run_train(make_run(fields, tmp_path / "f", init=str(trained[0]), encoder={"settings": {"embed_dim": 12}}))


def test_a_tower_of_an_artifact_is_copied_without_loading_its_weights(fields, tmp_path, monkeypatch):
    towers = tmp_path / "towers"
    TINY["make_towers"](towers, known=True)
    monkeypatch.setattr(inputs, "load_vision_tower", lambda place: pytest.fail("weights were loaded"))
    manifest = run_train(make_run(fields, tmp_path / "c", towers=str(towers)))
    copied, made = tmp_path / "c" / "model" / "vision", towers / "vision"
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == {
        path.name: path.read_bytes() for path in made.iterdir()
    }
    assert manifest.extra["encoder_digest"] == load_models(str(tmp_path / "c"))[1].digest


def test_a_tower_that_did_not_make_the_features_is_refused(fields, tmp_path):
    other = tmp_path / "towers"
    TINY["make_towers"](other, layers=2)
    with pytest.raises(IndexMismatchError, match="made by vision tower"):
        run_train(make_run(fields, tmp_path / "c", towers=str(other)))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"labels": 0}, ConfigError, "nothing to train on"),
        ({"features": [], "data": None, "triplets": ["x"]}, ConfigError, "features is empty"),
        ({"validation": {"every": 7}}, ConfigError, "multiple of training.log_every"),
        ({"ray": {"num_workers": 3}}, ConfigError, "does not divide by ray.num_workers 3"),
        ({"training": {"engine": "turbo"}}, ConfigError, "Unknown engine 'turbo'"),
        ({"init": "nowhere"}, ArtifactError, "'nowhere' does not exist"),
        ({"triplets": ["nowhere"]}, ArtifactError, "'nowhere' does not exist"),
        ({"validation": {"split": "dev", "every": 5}}, DataError, "no triplet of split 'dev'"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_words(fields, tmp_path, changes, error, words):
    with pytest.raises(error, match=words):
        run_train(make_run(fields, tmp_path / "c", **changes))
    assert list(tmp_path.iterdir()) == []


def test_pretraining_and_fine_tuning_have_their_own_defaults():
    assert PretrainRun().training.objective == "pretrain" and PretrainRun().labels == 0
    assert FinetuneRun().training.objective == "ptha" and FinetuneRun().init == PretrainRun().out


@pytest.fixture(scope="module")
def stage1(fields, tmp_path_factory):
    """A small BLIP-2 folder, and the features that its own tower makes."""
    root = tmp_path_factory.mktemp("blip2")
    folder = BLIP2["save_retrieval"](BLIP2["retrieval"](), root / "stage1")
    embed = {"data": fields["data"], "parts": ["labelled"], "tower": folder, "out": str(root / "features")}
    run_embed(EmbedRun.model_validate({**embed, "ray": {"enabled": False}}))
    return {**fields, "qformer_source": folder, "towers": folder, "features": [str(root / "features")], "encoder": {}}


def test_a_blip2_checkpoint_starts_a_training(stage1, tmp_path):
    manifest = run_train(make_run(stage1, tmp_path / "out", training={"steps": 2}))
    encoder, vision, _ = load_models(str(tmp_path / "out"))
    assert encoder.config.qformer.queries == 3 and vision.image_size == 16
    assert set(manifest.inputs) >= {"qformer_source"}
    start = BLIP2["retrieval"]().query_tokens
    moved = (encoder.qformer.query_tokens - start).abs().max()
    assert 0 < moved < 0.05


def test_the_temperature_of_stage_1_is_taken_where_it_is_asked_for_and_missed_where_there_is_none(
    stage1, fields, tmp_path
):
    def start(folder, **changes):
        run = make_run({**stage1, "qformer_source": folder, **changes}, tmp_path / "out")
        return start_retriever(run, read_inputs(run), 24).temperature.item()

    folder = stage1["qformer_source"]
    assert start(folder) == pytest.approx(0.07)
    with pytest.raises(ArtifactError, match="holds no temperature .*blip2_pretrained.pth"):
        start(folder, temperature="source")
    converted = tmp_path / "converted"
    shutil.copytree(folder, converted)
    tensors = load_file(converted / "model.safetensors")
    save_file({**tensors, "temperature": torch.tensor(0.031)}, converted / "model.safetensors", {"format": "pt"})
    assert start(str(converted), temperature="source") == pytest.approx(0.031)
    assert start(str(converted), temperature=0.05) == pytest.approx(0.05)
    assert (
        start(str(converted), encoder={"settings": {"temperature": 0.07}})
        == pytest.approx(0.07)
        != start(str(converted))
    )
    with pytest.raises(ConfigError, match="temperature=source is that of qformer_source"):
        make_run(fields, tmp_path / "x", temperature="source")


def test_sizes_beside_a_blip2_checkpoint_and_two_starts_are_refused(stage1, fields, tmp_path):
    with pytest.raises(ConfigError, match="encoder.settings.qformer.width is 64.*has 16"):
        run_train(make_run({**stage1, "encoder": {"settings": {"qformer": {"width": 64}}}}, tmp_path / "a"))
    with pytest.raises(ConfigError, match="encoder.settings.embed_dim is 64.*has 8"):
        run_train(make_run({**stage1, "encoder": {"settings": {"embed_dim": 64}}}, tmp_path / "a"))
    with pytest.raises(ConfigError, match="init and qformer_source both"):
        make_run(stage1, tmp_path / "b", init="somewhere")
    with pytest.raises(ConfigError, match="reads patch tokens of width 24, the features have 16"):
        run_train(make_run({**fields, "qformer_source": stage1["qformer_source"], "encoder": {}}, tmp_path / "c"))


DUAL = {"text": {"width": 16, "layers": 1, "heads": 2, "intermediate": 16}, "embed_dim": 8, "image_projection": True}


@pytest.mark.parametrize("fusion", ["sum", "combiner", "cross_attention"])
def test_a_small_dual_encoder_trains_in_the_same_loop(fields, fusion, tmp_path):
    head = {"kind": fusion, "settings": {"heads": 2} if fusion == "cross_attention" else {}}
    encoder = {"kind": "dual", "settings": {**DUAL, "fusion": head, "pooling": "mean"}}
    training = {"negatives": "targets", "mask_duplicates": False, "optimizer": {"lr": 3e-3}}
    manifest = run_train(make_run(fields, tmp_path / "out", encoder=encoder, training=training))
    history = rows_of(tmp_path / "out")
    assert history[-1]["loss"] < history[0]["loss"] and manifest.metrics["val_R@10"] >= 0
    encoder, vision, _ = load_models(str(tmp_path / "out"))
    assert encoder.config.fusion.kind == fusion and encoder.patch_width == vision.width == 16
    more = make_run({**fields, "encoder": {}}, tmp_path / "more", init=str(tmp_path / "out"), training={"steps": 2})
    assert run_train(more).metrics["loss"] > 0


def test_a_clip_folder_is_tower_and_text_encoder_of_a_run(fields, tmp_path):
    clip = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "small_clip.py"))
    folder = clip["save_hf"](clip["hf_model"](), tmp_path / "clip")
    run_towers(TowersRun(vision=folder, clip_tokens="all", out=str(tmp_path / "towers")))
    embed = {"data": fields["data"], "parts": ["labelled"], "tower": str(tmp_path / "towers")}
    run_embed(EmbedRun.model_validate({**embed, "out": str(tmp_path / "features"), "ray": {"enabled": False}}))
    fusion = {"kind": "cross_attention", "settings": {"heads": 2}}
    dual = {"kind": "dual", "settings": {"source": folder, "fusion": fusion}}
    places = {"towers": str(tmp_path / "towers"), "features": [str(tmp_path / "features")], "encoder": dual}
    run_train(make_run({**fields, **places}, tmp_path / "out", training={"steps": 2}))
    encoder, vision, _ = load_models(str(tmp_path / "out"))
    assert encoder.backbone == "hf_clip" and vision.num_tokens == 5 and encoder.config.embed_dim == vision.width == 12


def test_a_dual_encoder_is_refused_beside_a_checkpoint_and_under_ptha(fields, trained, tmp_path):
    dual = {"kind": "dual", "settings": DUAL}
    with pytest.raises(ConfigError, match="encoder.kind is 'dual', but the checkpoint .* is a 'qformer'"):
        run_train(make_run(fields, tmp_path / "a", encoder=dual, init=str(trained[0])))
    with pytest.raises(ConfigError, match="needs prototypes.*training.terms.two_hop=0"):
        run_train(make_run(fields, tmp_path / "b", encoder=dual, training={"objective": "ptha"}))


KEEP = {"every": 5, "held_out": 12, "keep": ["held_R@1", "held_R@5"]}


def measured(folder):
    return {row["step"]: (row["held_R@1"] + row["held_R@5"]) / 2 for row in rows_of(folder) if "held_R@1" in row}


class Spoil(Callback):
    """From a step on the weights are noise, so that an earlier measurement is the best."""

    def __init__(self, step):
        self.step = step

    def on_step(self, state, row):
        if state.step == self.step:
            for weight in state.engine.module.parameters():
                weight.data.normal_(generator=torch.Generator().manual_seed(state.step))


def spoiled_run(run, step, *more):
    """Train; the retriever is spoiled between two measurements."""
    return run_train(run, [Spoil(step), *more])


def test_a_slice_of_whole_families_is_taken_out_of_training_and_generated_texts_of_its_pairs_too(
    fields, labelled, tmp_path
):
    second = [replace(row, triplet_id=f"g{at}", source="vdg") for at, row in enumerate(labelled)]
    turned = replace(second[0], triplet_id="turned", reference_id=second[0].target_id,
                     target_id=second[0].reference_id)  # fmt: skip
    uri = write_triplets(tmp_path / "t", [*second, turned])
    inputs = read_inputs(make_run(fields, "x", triplets=[uri], validation=KEEP))
    held, trained_on = {row.group_id for row in inputs.slice}, {row.group_id for row in inputs.triplets}
    assert len(inputs.slice) == 12 and not held & trained_on and held | trained_on == {r.group_id for r in labelled}
    pairs = {frozenset((row.reference_id, row.target_id)) for row in inputs.slice}
    assert not any(frozenset((row.reference_id, row.target_id)) in pairs for row in inputs.triplets)
    assert len(inputs.triplets) in (84 + 84, 84 + 85)
    again = read_inputs(make_run(fields, "x", triplets=[uri], validation={**KEEP, "held_out": 24})).slice
    assert set(inputs.slice) < set(again)
    with pytest.raises(DataError, match="held_out=96 leaves none of the 96 labelled"):
        read_inputs(make_run(fields, "x", validation={**KEEP, "held_out": 96}))


def test_the_weights_of_the_best_measurement_are_kept(fields, tmp_path):
    from cirray.pipelines.training.job import build_job, recall_of

    run = make_run(fields, tmp_path / "kept", validation=KEEP)
    manifest, values = spoiled_run(run, 11), measured(tmp_path / "kept")
    best = min(step for step, value in values.items() if value == max(values.values()))
    assert list(values) == [5, 10, 15, 20] and best == manifest.counts["kept_step"] < 11
    kept = next(row for row in rows_of(tmp_path / "kept") if row["step"] == best)
    assert manifest.metrics["held_R@1"] == kept["held_R@1"] and manifest.metrics["loss"] == kept["loss"]
    assert manifest.counts["held_out"] == 12 and "val_R@1" in manifest.metrics
    inputs = read_inputs(run)
    found = recall_of(run, inputs, build_job(run, inputs).features, load_models(str(tmp_path / "kept"))[0])
    assert found == {name: value for name, value in manifest.metrics.items() if name != "loss"}
    last = make_run(fields, tmp_path / "last", validation={**KEEP, "keep": []})
    plain = spoiled_run(last, 11)
    assert plain.metrics["held_R@1"] == rows_of(tmp_path / "last")[-1]["held_R@1"] and "kept_step" not in plain.counts
    digests = [load_models(str(tmp_path / name))[0].digest for name in ("kept", "last")]
    assert digests[0] != digests[1]


def test_a_stopped_run_remembers_its_best_weights(fields, tmp_path):
    whole, broken = (make_run(fields, tmp_path / name, validation=KEEP) for name in ("whole", "broken"))
    wanted = spoiled_run(whole, 11)
    with pytest.raises(KeyboardInterrupt):
        spoiled_run(broken, 11, StopAt(17))
    found = run_train(broken)
    assert found.metrics == wanted.metrics and found.counts == wanted.counts
    assert load_models(str(tmp_path / "broken"))[0].digest == load_models(str(tmp_path / "whole"))[0].digest


@pytest.mark.parametrize("held_out", [0, 8])
def test_a_matching_head_s_weight_is_chosen_on_held_out_triplets_and_kept_with_it(
    fields, tmp_path, monkeypatch, held_out
):
    read = read_inputs(make_run(fields, tmp_path / "x", validation={"held_out": held_out, "every": 10}))
    rows = read.slice or read.dataset.split("val")
    targets = {(row.modification, row.reference_id): row.target_id for row in rows}

    def knows(self, items):
        return [np.array([99.0 * (name == targets[item.text, item.reference]) for name in item.ids]) for item in items]

    monkeypatch.setattr(MatchingReranker, "log_odds", knows)
    encoder = {"kind": "qformer", "settings": {**fields["encoder"].get("settings", {}), "matching": "trained"}}
    run = make_run(
        fields, tmp_path / "c", training={"terms": {"tdm_hard": 1.0}}, encoder=encoder,
        validation={"held_out": held_out, "every": 10},
    )  # fmt: skip
    made, part = run_train(run), "held" if held_out else "val"
    weight = made.metrics[f"{part}_rerank_weight"]
    assert weight > 0 and made.metrics[f"{part}_reranked_R@1"] > made.metrics[f"{part}_R@1"]
    head = load_models(str(tmp_path / "c"))[0].matching_head
    assert head.chosen_weight == weight and head.variant == "matching_hard"
    monkeypatch.setattr(MatchingReranker, "log_odds", lambda self, items: [np.zeros(len(item.ids)) for item in items])
    again = run_train(run.model_copy(update={"out": str(tmp_path / "d")}))
    assert again.metrics[f"{part}_rerank_weight"] == 0
    assert again.metrics[f"{part}_reranked_R@1"] == pytest.approx(again.metrics[f"{part}_R@1"])


def test_a_run_stops_when_no_measurement_is_better_for_long_enough(fields, tmp_path):
    run = make_run(fields, tmp_path / "c", training={"steps": 100}, validation={**KEEP, "patience": 2})
    manifest = spoiled_run(run, 11)
    values = measured(tmp_path / "c")
    assert manifest.counts["steps"] == max(values) < 100 and manifest.counts["kept_step"] < max(values)
    best = manifest.counts["kept_step"]
    assert [step for step in values if step > best] == [best + 5, best + 10]


def test_a_run_that_was_killed_behind_its_last_step_still_writes_its_model(fields, trained, tmp_path):
    run = make_run(fields, tmp_path / "c", validation={"every": 10})
    with pytest.raises(KeyboardInterrupt):
        run_train(run, [StopAt(20)])
    run_train(run)
    assert load_models(str(tmp_path / "c"))[0].digest == load_models(str(trained[0]))[0].digest


@pytest.mark.parametrize(
    ("validation", "words"),
    [
        ({"every": 5, "keep": ["held_R@1"]}, "held_out=0 leaves no slice"),
        ({"every": 5, "keep": ["val_R@3"]}, "known: val_R@1, val_R@5, val_R@10, held_R@1"),
        ({"every": 5, "keep": ["val_R@1"], "queries": 0}, "queries=0 measures nothing"),
        ({"keep": ["val_R@1"]}, "need measurements on the way"),
        ({"every": 5, "patience": 2}, "patience needs figures"),
        ({"ks": []}, "at least one cut-off"),
    ],
)
def test_a_choice_by_what_is_not_measured_is_refused(fields, validation, words):
    with pytest.raises(ConfigError, match=words):
        make_run(fields, "x", validation=validation)
