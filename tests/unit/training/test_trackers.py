"""Trackers: every figure of the history reaches each program, and a missing library is a sentence."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest

from cirray.core.config import validate
from cirray.core.errors import ConfigError
from cirray.pipelines.training.config import TrainRun
from cirray.training.trackers import check_trackers, open_trackers

ROWS = [{"step": 2.0, "loss": 1.5, "val_R@1": 0.25}, {"step": 4.0, "loss": 1.0, "val_R@1": 0.5}]


def followed(name, folder, start=0, rank=0, rows=ROWS):
    """A training's calls of a tracker."""
    (tracker,) = open_trackers([name], folder, "s3://bucket/runs/mine", {"seed": 7})
    tracker.on_start(SimpleNamespace(rank=rank, step=start))
    for row in rows:
        tracker.on_step(SimpleNamespace(rank=rank, step=int(row["step"]) - 1), None)
        tracker.on_step(SimpleNamespace(rank=rank, step=int(row["step"])), row)
    tracker.on_end(SimpleNamespace(rank=rank))


def module(monkeypatch, name, **functions):
    made = ModuleType(name)
    made.__spec__ = ModuleSpec(name, None)
    made.__dict__.update(functions)
    monkeypatch.setitem(sys.modules, name, made)


def test_tensorboard_gets_every_logged_value(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    followed("tensorboard", tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(item.step, item.value) for item in events.Scalars("train/loss")] == [(2, 1.5), (4, 1.0)]
    assert [item.value for item in events.Scalars("train/val_R_1")] == [0.25, 0.5]


def test_wandb_gets_every_value_under_one_name_and_id_for_all_starts(tmp_path, monkeypatch):
    said = []
    run = SimpleNamespace(
        log=lambda figures, step: said.append((step, figures)), finish=lambda: said.append("finished")
    )
    module(monkeypatch, "wandb", init=lambda **fields: said.append(fields) or run)
    for _ in range(2):
        followed("wandb", tmp_path)
    start, first, second, end = said[:4]
    assert said[4:] == said[:4] and end == "finished"
    assert (start["name"], start["resume"], start["config"]) == ("mine", "allow", {"seed": 7}) and start["id"]
    assert first == (2, {"train/loss": 1.5, "train/val_R@1": 0.25}) and second[0] == 4


def test_mlflow_goes_on_with_its_run_and_gets_names_that_it_takes(tmp_path, monkeypatch):
    said = []
    module(
        monkeypatch, "mlflow", end_run=lambda: said.append("ended"),
        start_run=lambda **fields: said.append(fields) or SimpleNamespace(info=SimpleNamespace(run_id="r1")),
        log_dict=lambda config, name: said.append((name, config)),
        log_metrics=lambda figures, step: said.append((step, figures)),
    )  # fmt: skip
    followed("mlflow", tmp_path)
    followed("mlflow", tmp_path, start=3, rows=[])
    assert said[:2] == [{"run_name": "mine"}, ("config.json", {"seed": 7})]
    assert said[2] == (2, {"train/loss": 1.5, "train/val_R_at_1": 0.25})
    assert said[4:] == ["ended", {"run_id": "r1"}, "ended"]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_other_ranks_write_nothing(tmp_path, name):
    followed(name, tmp_path, rank=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_library_that_is_missing_is_one_sentence_with_the_line_that_installs_it(monkeypatch, name):
    monkeypatch.setattr("cirray.core.extras.find_spec", lambda library: None)
    sentence = rf"^trackers=\[{name}\] needs the library {name}, which is not installed: pip install {name}\.$"
    with pytest.raises(ConfigError, match=sentence):
        check_trackers([name])


def test_an_unknown_tracker_is_told_with_the_known_ones():
    with pytest.raises(ConfigError, match="trackers.*'wandbb'.*wandb"):
        validate(TrainRun, {"trackers": ["wandbb"]})
