"""The driver's side of training on Ray's workers, without a cluster."""

import asyncio
import json
import threading
from types import SimpleNamespace

import pytest
import ray.train
from made_artifacts import stage_of
from ray.train.torch import TorchConfig, TorchTrainer

from cirray.core.errors import ConfigError
from cirray.pipelines.cluster.config import RayTrainConfig
from cirray.pipelines.training import retriever_ray, workers
from cirray.pipelines.training.failures import NoSecondTry, RoomFreed
from cirray.pipelines.training.inputs import TrainInputs
from cirray.pipelines.training.status import _Follower
from cirray.training.config import LoopConfig
from cirray.triplets.rows import TripletRows
from cirray.types import stable_id


class Reached(Exception):
    """The training would begin here."""


@pytest.mark.parametrize("again", [False, True])
def test_checkpoints_kept_outside_are_gone_on_from_by_the_run_that_wrote_them_alone(tmp_path, monkeypatch, again):
    out = str(tmp_path / "out")
    stale = tmp_path / "outside" / f"train-{stable_id(out)[:8]}" / "checkpoint_1" / "loop.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")

    def fit(*_):
        assert stale.exists() == again
        raise Reached

    monkeypatch.setattr(retriever_ray, "fit_on_ray", fit)
    run = SimpleNamespace(
        out=out, ray=RayTrainConfig(storage=str(tmp_path / "outside")),
        training=SimpleNamespace(objective="finetune", steps=1), trackers=(), to_dict=dict,
    )  # fmt: skip
    stage = stage_of(out, "checkpoint", {}, kept=["*"])
    if again:
        stage = stage_of(out, "checkpoint", {}, kept=["*"])
    with pytest.raises(Reached):
        retriever_ray.train_on_ray(run, stage, TrainInputs(TripletRows.of(()), (), (), (), None))


def test_steps_before_a_restart_do_not_count_as_speed(tmp_path):
    status_file, moves = tmp_path / "run.json", []
    follower = _Follower(str(status_file), lambda *args, **named: moves.append((args, named)), [])
    status_file.write_text(json.dumps({"step": 7, "starts": [5], "rows": []}))
    ended = threading.Event()
    ended.set()
    follower.run(ended)
    assert moves == [((5, "finished before"), {"earlier": True}), ((2, ""), {})]


def test_an_error_in_words_ends_a_training_and_a_crash_leaves_it_to_ray():
    words, crash = ConfigError("too wide"), RuntimeError("a worker died")
    wrapped = RuntimeError("outer")
    wrapped.__cause__ = words
    for failures in ({1: words}, {0: crash, 1: wrapped}):
        with pytest.raises(ray.train.ControllerError) as raised:
            NoSecondTry().after_exception(None, failures)
        assert workers._reason(raised.value) is words
    NoSecondTry().after_exception(None, {0: crash})


def test_ray_s_own_way_to_stop_workers_is_used_and_does_not_hide_the_interruption():
    called = []

    def handler(number, frame):
        called.append(number)
        raise SystemExit(0)

    workers._abort({workers.signal.SIGINT: handler})
    workers._abort({})
    assert called == [workers.signal.SIGINT]


@pytest.mark.parametrize(
    ("kind", "left_out"),
    [("_Trainer", {"DatasetsCallback"}), ("_OwnTrainer", {"DatasetsCallback", "PlacementGroupCleanerCallback"})],
)
def test_a_training_starts_no_process_for_data_sets_or_in_its_own_cluster_for_a_dead_controller(
    kind, left_out, tmp_path
):
    trainer = getattr(workers, kind)(
        lambda: None, torch_config=TorchConfig(), scaling_config=ray.train.ScalingConfig(num_workers=1),
        run_config=ray.train.RunConfig(storage_path=str(tmp_path)),
    )  # fmt: skip
    own, every = (
        [type(item).__name__ for item in made]
        for made in (trainer._create_default_callbacks(), TorchTrainer._create_default_callbacks(trainer))
    )
    assert own == ["RoomFreed", *(name for name in every if name not in left_out)] and left_out <= set(every)


def test_workers_of_a_group_that_did_not_start_whole_leave_their_place_in_the_cluster():
    ended, freed = [], RoomFreed()

    def group(name, started):
        return SimpleNamespace(has_started=lambda: started, abort=lambda: ended.append(name))

    freed.before_worker_group_start(None)
    freed.after_worker_group_start(group("a worker died", True))
    freed.before_worker_group_start(None)
    freed.after_worker_group_start(group("ended by Ray Train", False))
    asyncio.run(freed.before_controller_shutdown())
    freed.after_worker_group_start(group("a worker died, and no try is left", True))
    asyncio.run(freed.before_controller_shutdown())
    assert ended == ["a worker died", "a worker died, and no try is left"]


def test_a_worker_that_dies_while_the_workers_start_is_restarted_as_after_any_failure(tmp_path, monkeypatch):
    begun = []

    class Dying:
        def __init__(self, *args, **named):
            begun.append(named["run_config"].name)

        def fit(self):
            if len(begun) < 3:
                raise ray.train.ControllerError(ray.exceptions.ActorDiedError())
            return "trained"

    monkeypatch.setattr(workers, "_Trainer", Dying)
    fits = [
        workers.Fit(print, {}, RayTrainConfig(max_failures=count), LoopConfig(steps=1), "run", str(tmp_path), "train")
        for count in (2, 1)
    ]
    assert workers._fit(fits[0], (), False) == "trained" and begun == ["run"] * 3
    begun.clear()
    with pytest.raises(ConfigError, match="max_failures"):
        workers._fit(fits[1], (), False)
    assert len(begun) == 2
