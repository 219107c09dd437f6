"""With Ray the driver only checks: no model is built, and what cannot be trained is told before Ray starts."""

import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from made_artifacts import from_triplets, stage_of

from cirray.core.config import validate
from cirray.core.errors import ArtifactError, CirrayError, ConfigError, DataError
from cirray.models.base import Retriever
from cirray.pipelines.training import retriever_ray
from cirray.pipelines.training.config import TrainRun
from cirray.pipelines.training.inputs import read_inputs
from cirray.pipelines.training.job import features_of
from cirray.pipelines.training.train import run_train
from cirray.triplets.schema import rejected_table
from cirray.triplets.store import write_part

FIXTURES = Path(__file__).parents[2] / "fixtures"
TINY = runpy.run_path(str(FIXTURES / "tiny_training.py"))
BLIP2 = runpy.run_path(str(FIXTURES / "small_blip2.py"))
TEXT = {"width": 16, "layers": 1, "heads": 2, "intermediate": 16}


class Started(Exception):
    """Ray would start here."""


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    made = TINY["make"](tmp_path_factory.mktemp("checks"))
    return {**made, "training": {"steps": 2, "batch": 8, "log_every": 1}, "ray": {"num_workers": 2}}


@pytest.fixture(scope="module")
def start(fields, tmp_path_factory):
    out = tmp_path_factory.mktemp("start") / "checkpoint"
    run_train(validate(TrainRun, {**fields, "ray": {"enabled": False}, "out": str(out)}))
    return out


@pytest.fixture
def driver(fields, tmp_path, monkeypatch):
    """Starts a run with Ray and returns what its workers would get."""
    given = []

    def fit(found, *rest):
        given.append(found.settings)
        raise Started

    monkeypatch.setattr(retriever_ray, "fit_on_ray", fit)

    def start(**changes):
        training = {**fields["training"], **changes.pop("training", {})}
        run = validate(TrainRun, {**fields, **changes, "training": training, "out": str(tmp_path / "out")})
        with pytest.raises(Started):
            run_train(run)
        return given[-1]

    return start


@pytest.fixture
def no_model(monkeypatch):
    monkeypatch.setattr(Retriever, "__init__", lambda *given: pytest.fail("a model was built"))


@pytest.mark.usefixtures("no_model")
def test_the_driver_builds_no_model_and_workers_get_the_rows_it_has_read(fields, start, driver):
    for changes in ({}, {"init": str(start), "encoder": {"settings": {"text_length": 30}}}):
        given = driver(**changes)
        assert (
            given["inputs"] == replace(read_inputs(given["run"]), verified=True)
            and given["run"].encoder.given() == (changes or {"encoder": fields["encoder"]})["encoder"]
        )


def test_workers_do_not_read_through_features_that_the_driver_has_compared_with_their_digests(driver, monkeypatch):
    given, read = driver(), []
    monkeypatch.setattr("cirray.features.store.shard_digest", lambda folder, name: read.append(name))
    features_of(given["run"], given["inputs"])
    assert not read
    with pytest.raises(ArtifactError, match="damaged"):
        features_of(given["run"], read_inputs(given["run"]))


def damaged(start, tmp_path, change):
    """A copy of the checkpoint with a damaged model folder."""
    shutil.copytree(start, tmp_path / "damaged")
    change(tmp_path / "damaged" / "model")
    return str(tmp_path / "damaged")


def described(**changes):
    def change(folder):
        description = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**description, **changes}))

    return change


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no readable retriever"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 40), "holds no readable retriever"),
        (lambda folder: (folder / "config.json").write_text("{"), "holds no readable retriever"),
        (
            described(kind="telescope"),
            "no retriever that is known here. Unknown kind of retriever 'telescope'",
        ),
        (described(patch_width=24), "reads patch tokens of width 24, the features have 16"),
    ],
)
def test_start_weights_that_cannot_be_used_are_refused_before_ray_starts(driver, start, tmp_path, change, words):
    with pytest.raises(CirrayError, match=words):
        driver(init=damaged(start, tmp_path, change), encoder={})


@pytest.mark.usefixtures("no_model")
def test_settings_that_do_not_fit_are_refused_before_ray_starts(driver, start, fields):
    spn, second = {"objective": "spn"}, {"terms": {"bank_infonce": {"trains": "second_pass"}}}
    init = {"init": str(start), "encoder": {}}
    alone = {"encoder": {"settings": {"fusion": "text_only"}}, "training": {**spn, **second}}
    for changes, error, words in (
        ({"training": {"engine": "turbo"}}, ConfigError, "Unknown engine 'turbo'"),
        ({"training": {"batch": 200}}, ConfigError, "A batch of 200 cannot be filled"),
        ({**init, "encoder": {"settings": {"matching": "frozen"}}}, ConfigError, "no matching head to hold fixed"),
        ({**init, "encoder": {"kind": "dual"}}, ConfigError, "encoder.kind is 'dual', but the checkpoint"),
        (alone, ConfigError, "has no second pass to train alone"),
        ({"training": {"terms": {"retention_distill": 1.0}}}, ConfigError, "is for word_map retrievers, not for 'qf"),
        ({"tokenizer": fields["towers"]}, CirrayError, "tokenizer"),
    ):
        with pytest.raises(error, match=words):
            driver(**changes)


@pytest.mark.usefixtures("no_model")
def test_rows_that_cannot_be_trained_on_are_refused_before_ray_starts(driver, fields, tmp_path):
    inputs = read_inputs(validate(TrainRun, {**fields, "out": "x"}))
    first, held_out = inputs.triplets[0], inputs.queries[0].target_ids[0]
    leak = replace(first, triplet_id="leak", target_id=held_out)
    far = replace(first, triplet_id="far", target_id="nowhere")
    for name, row, training, words in (
        ("far", far, {}, "'nowhere' of triplet 'far' has no features"),
        ("leak", leak, {"objective": "spn"}, f"The negative bank holds 1 val or test images.*{held_out}"),
    ):
        stage = stage_of(str(tmp_path / name), "triplets", {})
        write_part(stage.work_uri, "part-00000", from_triplets([row]), rejected_table([]))
        stage.publish({"triplets": 1})
        with pytest.raises(DataError, match=words):
            driver(triplets=[str(tmp_path / name)], training=training)


@pytest.mark.usefixtures("no_model")
def test_a_blip2_source_is_checked_by_its_config_and_the_names_of_its_tensors(driver, tmp_path):
    source = BLIP2["save_retrieval"](BLIP2["retrieval"](), tmp_path / "stage1")
    with pytest.raises(ConfigError, match="reads patch tokens of width 24, the features have 16"):
        driver(qformer_source=source, encoder={})
    with pytest.raises(ArtifactError, match="holds no temperature"):
        driver(qformer_source=source, encoder={}, temperature="source", features=[], images=[], towers=source)


def test_a_dual_encoder_that_does_not_fit_is_refused_before_ray_starts(driver):
    dual = {"kind": "dual", "settings": {"text": TEXT, "embed_dim": 8}}
    with pytest.raises(ConfigError, match="tokens have width 16, the texts' vectors 8"):
        driver(encoder=dual)
