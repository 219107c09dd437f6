"""VDG as configurations: semi-supervised training that resumes exactly, its generator, what the texts have seen."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_artifacts import from_triplets, stage_of

from cirray.core.config import validate
from cirray.core.errors import ConfigError, IndexMismatchError
from cirray.image_text import load_models
from cirray.pipelines.features.config import EmbedRun
from cirray.pipelines.features.embed import run_embed
from cirray.pipelines.texts.config import GeneratorRun
from cirray.pipelines.texts.generator import run_generator
from cirray.pipelines.training.config import TrainRun
from cirray.pipelines.training.inputs import read_inputs
from cirray.pipelines.training.train import run_train
from cirray.training.loop import Callback
from cirray.triplets.schema import rejected_table
from cirray.triplets.store import write_part

TINY = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "tiny_training.py"))
VDG = {
    "objective": "vdg", "terms": {"tdm": 1.0, "tcc": {"beta": 0.5}}, "mixing": "paired", "pair_texts": "drawn",
    "steps": 10, "batch": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    return TINY["make"](tmp_path_factory.mktemp("v"))


@pytest.fixture(scope="module")
def run(fields, tmp_path_factory):
    """A run on labelled triplets with second texts, and as many swapped pairs with generated texts."""
    rows = read_inputs(validate(TrainRun, {**fields, "out": "x"})).triplets
    second = [
        replace(row, triplet_id=f"s{at}", source="vdg", modification="make it red") for at, row in enumerate(rows)
    ]
    mined = [
        replace(row, triplet_id=f"m{at}", reference_id=row.target_id, target_id=row.reference_id, source="vdg")
        for at, row in enumerate(rows)
    ]
    place = tmp_path_factory.mktemp("texts") / "deltas"
    stage = stage_of(str(place), "triplets", {})
    write_part(stage.work_uri, "part-00000", from_triplets([*second, *mined]), rejected_table([]))
    stage.publish({"triplets": 2 * len(rows)}, {}, {"generator_saw": {"shapes": len(rows)}})
    encoder = {"settings": {**fields["encoder"]["settings"], "matching": "trained"}}
    training = {**fields["training"], **VDG}
    return {**fields, "triplets": [str(place)], "encoder": encoder, "training": training}


class StopAt(Callback):
    def on_step(self, state, row):
        if state.step == 7:
            raise KeyboardInterrupt


def history(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_semi_supervised_training_resumes_exactly_and_says_what_its_generators_saw(run, tmp_path):
    whole = run_train(validate(TrainRun, {**run, "out": str(tmp_path / "whole")}))
    stopped = validate(TrainRun, {**run, "out": str(tmp_path / "stopped")})
    with pytest.raises(KeyboardInterrupt):
        run_train(stopped, [StopAt()])
    run_train(stopped)
    assert history(tmp_path / "stopped") == history(tmp_path / "whole")
    assert {"tcc", "tdm"} <= set(history(tmp_path / "whole")[-1])
    assert whole.extra["generators_saw"] == {"shapes": 96} and whole.counts["vdg"] == 192
    encoder, _, _ = load_models(str(tmp_path / "whole"))
    assert encoder.matching_head is not None and encoder.config.matching == "trained"


def test_a_checkpoint_with_a_matching_head_starts_one_that_is_fine_tuned_without_it(run, tmp_path):
    run_train(validate(TrainRun, {**run, "out": str(tmp_path / "first")}))
    plain = {**run["training"], "objective": "finetune", "terms": {}, "steps": 5}
    again = {**run, "init": str(tmp_path / "first"), "encoder": {}, "training": plain, "out": str(tmp_path / "second")}
    run_train(validate(TrainRun, again))
    first, second = (load_models(str(tmp_path / name))[0] for name in ("first", "second"))
    assert torch.equal(first.matching_head.classifier.bias, second.matching_head.classifier.bias)
    assert not torch.equal(first.text_projection.weight, second.text_projection.weight)


def generator_run(fields, root, **changes):
    model = {
        "qformer": {"width": 16, "layers": 1, "heads": 2, "queries": 9, "intermediate": 16},
        "separators": ["from", "to"], "opening": "delta-small/1", "reader_tuning": "alignment",
        "projection_bias": False, "tuning": "lora",
        "lora": {"rank": 2, "modules": ["q_proj", "v_proj"], "in_alignment": False},
    }  # fmt: skip
    quick = {"steps": 2, "batch": 8}
    tree = {
        "data": fields["data"], "towers": str(root / "towers"), "features": [str(root / "features")],
        "generator": {"settings": model},
        "alignment_training": quick, "training": quick, "evaluate_pairs": 2, "zero_shot": False,
        "out": str(root / "generator"), **changes,
    }  # fmt: skip
    return validate(GeneratorRun, tree)


@pytest.fixture(scope="module")
def home(fields, tmp_path_factory):
    """Towers with the shipped language model, and features by them."""
    pytest.importorskip("peft")
    from cirray.pipelines.features.config import TowersRun
    from cirray.pipelines.features.towers import run_towers

    root = tmp_path_factory.mktemp("g")
    run_towers(validate(TowersRun, {"out": str(root / "towers")}))
    embed = {"data": fields["data"], "parts": ["labelled"], "tower": str(root / "towers"), "ray": {"enabled": False}}
    run_embed(validate(EmbedRun, {**embed, "out": str(root / "features")}))
    return root


def test_the_generator_can_align_on_captions_of_another_data_set_and_says_what_it_saw(fields, home):
    aligned = {"steps": 2, "batch": 8, "data": fields["data"], "features": [str(home / "features")]}
    manifest = run_generator(generator_run(fields, home, alignment_training=aligned, labels=8))
    assert manifest.metrics["alignment"]["objective"] == "bags"
    assert manifest.metrics["alignment"]["captions"] > manifest.counts["captions"]
    assert list(manifest.extra["saw"].values()) == [8] and manifest.extra["prompt_version"] == "change/1"


def test_alignment_features_of_another_tower_are_refused(fields, home):
    other = {"steps": 2, "batch": 8, "data": fields["data"], "features": fields["features"]}
    with pytest.raises(IndexMismatchError, match="made by vision tower .* needs those of tower"):
        run_generator(generator_run(fields, home, alignment_training=other, out=str(home / "refused")))


def test_the_second_stage_is_refused_from_a_random_projection(fields, home, tmp_path):
    """The released code skips the stage that the paper requires."""
    bare = {"alignment": "none", "out": str(tmp_path / "refused")}
    with pytest.raises(ConfigError, match="projection starts at random.*alignment='none'.*source_projection"):
        run_generator(generator_run(fields, home, **bare))
    trained = generator_run(fields, home, **{**bare, "out": str(tmp_path / "trained")}).to_dict()
    trained["generator"]["settings"]["reader_tuning"] = "always"
    assert run_generator(validate(GeneratorRun, trained)).metrics["alignment"] == {"objective": "none"}
