"""SPN's second stage as a run: from a checkpoint, resumed, guarded; with dual encoders; searched as any other."""

import runpy
from dataclasses import replace
from pathlib import Path

import pytest
from made_artifacts import from_triplets, stage_of

from cirray.core.config import validate
from cirray.core.errors import ConfigError, DataError, IndexMismatchError
from cirray.image_text import load_models
from cirray.models.forked import ForkedRetriever
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.search.index import run_index
from cirray.pipelines.training.config import TrainRun
from cirray.pipelines.training.inputs import read_inputs
from cirray.pipelines.training.train import run_train
from cirray.search_engine import SearchEngine
from cirray.training.loop import Callback
from cirray.triplets.schema import rejected_table
from cirray.triplets.store import write_part

TINY = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "tiny_training.py"))
SPN = {"objective": "spn", "steps": 6, "log_every": 2, "checkpoint_every": 2, "optimizer": {"lr": 1e-2}}


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    return TINY["make"](tmp_path_factory.mktemp("bank"))


def run_of(fields, out, training=None, **changes):
    tree = {name: value for name, value in fields.items() if not ("init" in changes and name == "model")}
    return validate(
        TrainRun, {**tree, "out": str(out), **changes, "training": {**fields["training"], **(training or {})}}
    )


@pytest.fixture(scope="module")
def base(fields, tmp_path_factory):
    out = tmp_path_factory.mktemp("base") / "checkpoint"
    run_train(run_of(fields, out, {"steps": 5}))
    return str(out)


@pytest.fixture(scope="module")
def tuned(fields, base, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned") / "checkpoint"
    return str(out), run_train(run_of(fields, out, SPN, init=base))


def history(folder):
    return (Path(folder) / "history.jsonl").read_text()


def test_the_second_stage_keeps_the_target_side_of_the_checkpoint_it_starts_from(base, tuned):
    out, manifest = tuned
    encoder, start = load_models(out)[0], load_models(base)[0]
    assert isinstance(encoder, ForkedRetriever) and encoder.target_digest == start.digest != encoder.digest
    assert '"bank_hidden"' in history(out) and '"bank_infonce"' in history(out)
    assert "val_R@1" in manifest.metrics


def test_its_checkpoint_searches_the_index_of_the_first_stage(fields, base, tuned, tmp_path):
    index = str(tmp_path / "index")
    run_index(IndexRun(checkpoint=base, features=tuple(fields["features"]), data=None, out=index))
    SearchEngine.open(tuned[0], index).probe()
    other = tmp_path / "other"
    run_train(run_of(fields, other, {"steps": 2, "seed": 7, "log_every": 1}))
    with pytest.raises(IndexMismatchError):
        SearchEngine.open(str(other), index)


def test_a_stopped_second_stage_goes_on_where_it_was(fields, base, tuned, tmp_path):
    class Stop(Callback):
        def on_step(self, state, row):
            if state.step == 3:
                raise KeyboardInterrupt

    run = run_of(fields, tmp_path / "c", SPN, init=base)
    with pytest.raises(KeyboardInterrupt):
        run_train(run, [Stop()])
    run_train(run)
    assert history(tmp_path / "c") == history(tuned[0])


def test_a_second_stage_can_be_trained_on(fields, tuned, tmp_path):
    run_train(run_of(fields, tmp_path / "more", SPN, init=tuned[0]))
    digests = [load_models(str(place))[0].target_digest for place in (tuned[0], tmp_path / "more")]
    assert digests[0] == digests[1]
    with pytest.raises(ConfigError, match="forked to train its 'query_side', the run asks for 'second_pass'"):
        run_train(
            run_of(fields, tmp_path / "x", {**SPN, "terms": {"bank_infonce": {"trains": "second_pass"}}}, init=tuned[0])
        )


def test_triplets_with_held_out_images_are_refused_unless_allowed(fields, base, tmp_path):
    inputs = read_inputs(run_of(fields, "x", {}))
    held_out = inputs.queries[0]
    row = replace(inputs.triplets[0], triplet_id="leak", target_id=held_out.target_ids[0])
    stage = stage_of(str(tmp_path / "t"), "triplets", {})
    write_part(stage.work_uri, "part-00000", from_triplets([row]), rejected_table([]))
    stage.publish({"triplets": 1})
    more = {"init": base, "triplets": [str(tmp_path / "t")]}
    with pytest.raises(DataError, match=f"The negative bank holds 1 val or test images.*{held_out.target_ids[0]}"):
        run_train(run_of(fields, tmp_path / "c", SPN, **more))
    assert run_train(run_of(fields, tmp_path / "c", SPN, allow_leaks=True, **more)).counts["steps"] == 6


@pytest.mark.parametrize("projected", [True, False])
@pytest.mark.parametrize("fusion", ["sum", "combiner", "cross_attention"])
def test_dual_encoders_of_every_fusion_train_against_the_bank(fields, tmp_path, fusion, projected):
    text = {"width": 16, "layers": 1, "heads": 2, "intermediate": 16}
    head = {"kind": fusion, "settings": {"heads": 2} if fusion == "cross_attention" else {}}
    dual = {"fusion": head, "embed_dim": 16, "text": text, "image_projection": projected}
    run_train(run_of(fields, tmp_path / "c", {**SPN, "steps": 2}, encoder={"kind": "dual", "settings": dual}))
    encoder = load_models(str(tmp_path / "c"))[0]
    assert isinstance(encoder, ForkedRetriever) == projected
    assert '"bank_infonce"' in history(tmp_path / "c")
