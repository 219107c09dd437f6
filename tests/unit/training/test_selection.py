"""Which measurement's weights are kept, and when waiting for a better one ends."""

import pytest
import torch

from cirray.core.errors import ConfigError
from cirray.training.callbacks import Checkpoints
from cirray.training.checkpoint import latest_checkpoint
from cirray.training.loop import Callback, train
from cirray.training.selection import KeepBest, best_row, mean_of, put_best
from cirray.training.torch_engine import TorchEngine


class Measured(Callback):
    """Figures from a list, one a step; remembers each step's weights, and the run's state."""

    def __init__(self, values):
        self.values, self.weights = values, {}

    def on_step(self, state, row):
        row["held_R@1"], row["held_R@5"] = self.values[state.step - 1], 0.5
        self.weights[state.step] = [weight.detach().clone() for weight in state.engine.module.parameters()]
        self.state = state


def run(make_task, values, names=("held_R@1",), patience=None, every=1, more=(), resume=None):
    task, config = make_task(steps=len(values), optimizer={"lr": 1e-2})
    measured = Measured(values)
    history = train(task, config, TorchEngine, [measured, KeepBest(names, every, patience), *more], resume=resume)
    return measured, history


def test_the_first_of_the_best_measurements_stays(make_task):
    measured, history = run(make_task, [0.2, 0.5, 0.5, 0.4])
    best = measured.state.best
    assert (best.step, best.value, best.misses) == (2, 0.5, 2) and best_row(history, ("held_R@1",))["step"] == 2
    model = measured.state.engine.module
    put_best(measured.state, model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), measured.weights[2], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(measured.weights[2], measured.weights[4], strict=True))


def test_the_mean_of_the_figures_decides(make_task):
    measured, _ = run(make_task, [0.2, 0.4, 0.3], ("held_R@1", "held_R@5"))
    assert measured.state.best.value == pytest.approx(0.45)
    assert mean_of({"a": 1.0, "b": 0.0}, ("a", "b")) == 0.5


def test_only_scheduled_measurements_and_the_last_count(make_task):
    measured, _ = run(make_task, [0.9, 0.2, 0.8, 0.1, 0.3], every=2)
    assert measured.state.best.step == 5 and measured.state.best.value == 0.3


def test_patience_counts_measurements_in_a_row_and_a_better_one_starts_it_again(make_task):
    measured, history = run(make_task, [0.3, 0.2, 0.4, 0.1, 0.2, 0.9], patience=2)
    assert measured.state.step == 5 and measured.state.best.step == 3 and len(history) == 5


def test_a_stopped_run_stays_stopped_when_it_is_started_again(make_task, tmp_path):
    first, _ = run(make_task, [0.3, 0.2, 0.1, 0.9], patience=1, more=[Checkpoints(tmp_path)])
    again, history = run(make_task, [0.3, 0.2, 0.1, 0.9], patience=1, resume=latest_checkpoint(tmp_path))
    assert first.state.step == 2 and len(history) == 2 and not again.weights


def test_a_checkpoint_without_best_weights_reads_as_before(make_task, tmp_path):
    task, config = make_task(steps=2)
    train(task, config, TorchEngine, [Checkpoints(tmp_path)])
    assert [item.name for item in tmp_path.iterdir()] == ["step-00000002"]
    assert sorted(item.name for item in (tmp_path / "step-00000002").iterdir()) == ["engine.pt", "loop.json"]


def test_a_figure_that_is_not_measured_is_named(make_task):
    with pytest.raises(ConfigError, match="cannot be chosen by 'val_R@3': step 1 measured step, loss"):
        run(make_task, [0.1], ("val_R@3",))
