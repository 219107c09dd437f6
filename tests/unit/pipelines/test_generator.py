import json
import runpy
from pathlib import Path

import pytest

from cirray.core.config import load_config
from cirray.core.errors import ArtifactError, ConfigError, DataError
from cirray.data.benchmark import select_labels
from cirray.data.config import ShapesConfig
from cirray.data.shapes.world import write_world
from cirray.generators.store import load_generator, load_model
from cirray.models.towers.hf_blip2 import load_vision_tower
from cirray.pipelines.cluster.config import RayConfig
from cirray.pipelines.cluster.parts import run_parts
from cirray.pipelines.features.config import EmbedRun, TowersRun
from cirray.pipelines.features.embed import run_embed
from cirray.pipelines.features.towers import run_towers
from cirray.pipelines.texts import generator, heldout
from cirray.pipelines.texts.config import GeneratorRun
from cirray.pipelines.texts.generator import run_generator
from cirray.pipelines.texts.generator_inputs import build_generator, encode_live
from cirray.types import Pair

TRAIN = generator._train
QUICK = ("features=[]", "alignment_training.steps=3", "training.steps=3", "training.batch=8", "evaluate_pairs=6")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("home")
    sizes = {"labelled_families": 6, "heldout_families": 3, "pool_families": 0, "gallery_references": 0}
    write_world(ShapesConfig(**sizes), root / "world")
    run_towers(load_config(TowersRun, None, [f"out={root / 'towers'}"]))
    return root


def settings(home, out, *overrides):
    places = (f"towers={home / 'towers'}", f"data.folder.root={home / 'world'}", f"out={home / out}")
    return load_config(GeneratorRun, None, [*QUICK, *places, *overrides])


def test_the_stage_writes_a_generator_that_can_be_loaded_and_reports_both_directions(home):
    run = settings(home, "generator")
    manifest = run_generator(run)
    assert manifest.kind == "generator" and manifest.counts == {"labels": 24, "captions": 30, "held_out": 12}
    assert manifest.metrics["alignment"]["objective"] == "bags" and manifest.metrics["token_loss"] > 0
    for row in ("zero_shot", "trained"):
        assert {"forward", "reverse", "failed"} <= set(manifest.metrics[row])
    assert run_generator(run) == manifest
    samples = [json.loads(line) for line in (home / "generator" / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 6 and {"reference", "target", "human", "generated", "reverse"} <= set(samples[0])
    assert not (home / "generator" / "work").exists()


def test_a_loaded_generator_writes_what_the_stage_reported(home):
    from cirray.data.readers import read_dataset

    run = settings(home, "generator")
    run_generator(run)
    dataset, tower = read_dataset(run.data), load_vision_tower(home / "towers" / "vision")
    rows = dataset.split("val")[:6]
    ids = sorted({image for row in rows for image in (row.reference_id, row.target_id)})
    pairs = [Pair(row.triplet_id, row.reference_id, row.target_id) for row in rows]
    made = load_generator(home / "generator").generate(pairs, encode_live(tower, dataset, ids, run))
    samples = [json.loads(line) for line in (home / "generator" / "samples.jsonl").read_text().splitlines()]
    assert [(row.text, row.reverse_text) for row in made] == [(row["generated"], row["reverse"]) for row in samples]


def test_many_held_out_pairs_are_written_in_parts_with_the_same_texts_and_a_killed_run_goes_on(home, monkeypatch):
    made, parts = run_generator(settings(home, "generator")), []

    def here(stage, given, ray):
        assert ray.enabled
        return run_parts(stage, given, RayConfig(enabled=False))

    class Killed(heldout.WriteTexts):
        def __call__(self, columns):
            parts.append(int(columns["part"][0]))
            if len(parts) == 2:
                raise DataError("killed")
            return super().__call__(columns)

    monkeypatch.setattr(heldout, "run_parts", here)
    monkeypatch.setattr(heldout, "WriteTexts", Killed)
    monkeypatch.setattr(generator, "_train", in_process)
    run = settings(home, "parted", "ray.num_workers=1", "ray_from=6", "part_rows=4", "zero_shot=false")
    with pytest.raises(DataError, match="killed"):
        run_generator(run)
    again = run_generator(run)
    assert parts == [0, 1, 1, 2] and again.metrics["trained"] == made.metrics["trained"]
    assert again.metrics["token_loss"] == made.metrics["token_loss"], "of all pairs, also those without a text"
    assert (home / "parted" / "samples.jsonl").read_text() == (home / "generator" / "samples.jsonl").read_text()
    assert not (home / "parted" / "heldout").exists()


def in_process(run, stage, model, task, title):
    """Both loops without workers."""
    return TRAIN(run.model_copy(update={"ray": None}), stage, model, task, title)


def test_fewer_labels_are_whole_families_with_their_captions_alone(home):
    from cirray.data.readers import read_dataset

    dataset = read_dataset(settings(home, "x").data)
    labelled = select_labels(dataset, 6)
    assert len(labelled.train) == 8 and len({row.group_id for row in labelled.train}) == 2
    assert set(labelled.captions) == {image for row in labelled.train for image in (row.reference_id, row.target_id)}
    assert len(labelled.held_out) == 12


def test_the_paper_layout_and_other_alignments_run(home):
    passes = "generator.settings.passes=[reference,target,difference]"
    paper = run_generator(settings(home, "paper", passes, "alignment=captions", "zero_shot=false", "scenes="))
    assert paper.metrics["alignment"]["objective"] == "captions" and "zero_shot" not in paper.metrics
    assert "forward" not in paper.metrics["trained"]
    three = run_generator(settings(home, "three", passes, "evaluate_pairs=0"))
    assert three.metrics["alignment"]["pairs"] == 60 and three.metrics["alignment"]["difference"] > 0
    bare = run_generator(settings(home, "bare", "alignment=none", "evaluate_pairs=0"))
    assert bare.metrics["alignment"] == {"objective": "none"}


def test_workers_must_share_both_batches_and_deepspeed_needs_workers(home):
    assert settings(home, "x").ray is None and settings(home, "x", "ray.num_workers=4").ray.enabled
    with pytest.raises(ConfigError, match=r"training.batch 8 does not divide by ray.num_workers 3"):
        settings(home, "x", "ray.num_workers=3", "alignment_training.batch=9")
    with pytest.raises(ConfigError, match="alignment_training.batch 10 does not divide"):
        settings(home, "x", "ray.num_workers=4", "alignment_training.batch=10")
    with pytest.raises(ConfigError, match="training.engine 'deepspeed' needs workers"):
        settings(home, "x", "training.engine=deepspeed", "ray={enabled: false, num_workers: 2}")


def test_start_weights_follow_the_seed(home):
    first, again, other = (build_generator(settings(home, "x", f"seed={seed}")).own_state() for seed in (0, 0, 1))
    name = "projection.weight"
    assert (first[name] == again[name]).all() and not (first[name] == other[name]).all()


def test_a_stage_started_too_early_or_without_labels_says_so(home, tmp_path):
    with pytest.raises(ArtifactError, match="Run the stage that makes it first"):
        run_generator(settings(home, "early", f"towers={tmp_path / 'none'}"))
    (tmp_path / "images").mkdir()
    write_world(
        ShapesConfig(labelled_families=0, heldout_families=1, pool_families=0, gallery_references=0), tmp_path / "world"
    )
    with pytest.raises(DataError, match="no triplets of split 'train'"):
        run_generator(settings(home, "none", f"data.folder.root={tmp_path / 'world'}"))


def test_features_of_another_tower_are_refused_and_those_of_these_towers_are_read(home, tmp_path):
    import numpy as np
    from made_artifacts import stage_of

    from cirray.core.errors import IndexMismatchError
    from cirray.data.readers import read_dataset
    from cirray.features.shards import FeatureShardWriter

    run = settings(home, "stored")
    dataset, tower = read_dataset(run.data), load_vision_tower(home / "towers" / "vision")
    store = encode_live(tower, dataset, sorted(dataset.images.ids), run)

    def write(name, digest):
        stage = stage_of(tmp_path / name, "features", {})
        FeatureShardWriter(stage.work_uri).write(0, list(store.ids), np.asarray(store.get(store.ids)), [])
        extra = {"encoder_digest": digest, "transform_digest": "t", "shape": list(store.shape)}
        stage.publish({"images": len(store)}, extra=extra)
        return f"features=[{tmp_path / name}]"

    quick = ("evaluate_pairs=0", "training.steps=1", "alignment=none")
    with pytest.raises(IndexMismatchError, match="made by vision tower other"):
        run_generator(settings(home, "refused", write("foreign", "other"), *quick))
    stored = run_generator(settings(home, "stored", write("own", tower.digest), *quick))
    live = run_generator(settings(home, "live", *quick))
    assert stored.metrics["train_loss"] == live.metrics["train_loss"]


def test_an_instructblip_checkpoint_gives_tower_language_model_q_former_and_projection(home):
    blip2 = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "small_blip2.py"))
    folder = blip2["save_instruct"](blip2["instruct"](), home / "instructblip")
    towers = load_config(TowersRun, None, [f"vision={folder}", f"language={folder}", f"out={home / 'itowers'}"])
    run_towers(load_config(TowersRun, towers.to_dict(), ["image_mode=target_pad"]))
    passes = "generator.settings.passes=[reference,target,difference]"
    given = (passes, f"qformer_source={folder}", f"towers={home / 'itowers'}", "alignment=none", "scenes=")
    manifest = run_generator(settings(home, "instructed", *given, "evaluate_pairs=2", "decoding.keep_unfinished=true"))
    assert manifest.inputs["qformer_source"] and manifest.metrics["token_loss"] > 0
    with pytest.raises(ConfigError, match="generator.settings.qformer.width is 64, but .*instructblip.* has 16"):
        run_generator(settings(home, "wide", *given, "generator.settings.qformer.width=64"))
    again = load_model(home / "instructed")
    start = blip2["instruct"]()
    assert 0 < (again.projection.weight - start.language_projection.weight).abs().max() < 0.01
    assert again.config.qformer.queries == 3 and len(again.reader) == len(blip2["reader"]())
    assert load_vision_tower(home / "itowers" / "vision").transform.mode == "target_pad"


def test_no_training_step_leaves_a_generator_aligned_with_captions_alone(home):
    manifest = run_generator(settings(home, "aligned", "training.steps=0"))
    assert "train_loss" not in manifest.metrics and manifest.metrics["alignment"]["objective"] == "bags"
    assert manifest.metrics["trained"] == manifest.metrics["zero_shot"]
    assert load_model(home / "aligned").config.qformer.queries == 9


def compare(home, monkeypatch, *fields):
    path = str(Path(__file__).parents[3] / "jobs" / "benchmarks" / "bench_comparison.py")
    given = [f"root={home}", f"language={home / 'towers' / 'lm'}", f"results={home / 'rows.jsonl'}", *fields]
    monkeypatch.setattr("sys.argv", [path, *given])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(path, run_name="__main__")
    return done.value.code


def test_ways_to_train_a_generator_are_compared_row_by_row_and_a_row_is_made_once(home, monkeypatch, capsys):
    run_embed(load_config(EmbedRun, None, [f"root={home}", "data.folder.root=@world", "ray.enabled=false"]))
    small = ("steps=2", "batch=4", "align=2", "pairs=4", 'ways=["q_c, lora","text first, q_c"]')
    assert not compare(home, monkeypatch, *small, "seeds=[0]") and not compare(home, monkeypatch, *small, "seeds=[0,1]")
    rows = [json.loads(line) for line in (home / "rows.jsonl").read_text().splitlines()]
    assert [(row["way"], row["seed"]) for row in rows] == [
        ("q_c, lora", 0), ("text first, q_c", 0), ("q_c, lora", 1), ("text first, q_c", 1),
    ]  # fmt: skip
    assert "| world | q_c, lora | 2 x 4 | 2 | " in capsys.readouterr().out
    assert (
        compare(home, monkeypatch, "device=cuda:7") == 2 and "device='cuda:7' is not there" in capsys.readouterr().err
    )
