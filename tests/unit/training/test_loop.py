import json
from itertools import count
from types import SimpleNamespace

import pytest
import torch

from cirray.core.errors import ArtifactError, ConfigError
from cirray.losses.output import LossOutput
from cirray.training.callbacks import CheckpointClock, Checkpoints, HistoryFile, ShowProgress
from cirray.training.checkpoint import latest_checkpoint
from cirray.training.config import LoopConfig
from cirray.training.loop import Callback, train
from cirray.training.torch_engine import TorchEngine


class Poisoned(Callback):
    """Breaks the weights before a given step."""

    def __init__(self, step):
        self.step = step

    def on_step(self, state, row):
        if state.step == self.step:
            for weight in state.engine.module.parameters():
                weight.data.fill_(float("nan"))


class Stop(Callback):
    """Dies after a given step, as a killed worker does."""

    def __init__(self, step):
        self.step = step

    def on_step(self, state, row):
        if state.step == self.step:
            raise KeyboardInterrupt


class Ticks(Callback):
    """Moves a clock by some seconds a step."""

    def __init__(self, now, seconds):
        self.now, self.seconds = now, seconds

    def on_step(self, state, row):
        self.now[0] += self.seconds


class Endless:
    """A regression task that ends early when told so."""

    def __init__(self, end=None):
        self.end = end

    def model(self):
        return torch.nn.Linear(2, 1)

    def batches(self, start_step, rank, world):
        for step in count(start_step) if self.end is None else range(start_step, self.end):
            yield torch.randn(4, 2, generator=torch.Generator().manual_seed(step))

    def loss(self, model, batch, gather):
        value = (model(batch) - batch.sum(dim=1, keepdim=True)).square().mean()
        return LossOutput(value, {"mse": value.detach()})

    def save(self, model, folder):
        raise AssertionError("the loop never saves the model itself")


def weights(task):
    return {name: tensor.clone() for name, tensor in task.model().state_dict().items()}


def test_training_lowers_the_loss_and_logs_every_row(make_task):
    task, config = make_task(steps=24, batch=8, log_every=8, optimizer={"lr": 1e-2})
    history = train(task, config, TorchEngine)
    assert [row["step"] for row in history] == [8, 16, 24]
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert {"loss", "infonce", "temperature", "lr", "grad_norm"} <= set(history[0])


def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(make_task, tmp_path):
    settings = {"steps": 6, "checkpoint_every": 2, "objective": "ptha", "dropout": 0.1}
    whole, config = make_task(**settings)
    history = train(whole, config, TorchEngine)
    broken, _ = make_task(**settings)
    with pytest.raises(KeyboardInterrupt):
        train(broken, config, TorchEngine, [Checkpoints(tmp_path), Stop(5)])
    resumed, _ = make_task(**settings, seed=9)
    found = latest_checkpoint(tmp_path)
    assert found is not None and found.name == "step-00000004"
    assert train(resumed, config, TorchEngine, resume=found) == history
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())
    other, _ = make_task(**settings, seed=9)
    train(other, config, TorchEngine)
    assert not torch.equal(weights(other)["prompts"], weights(whole)["prompts"])


@pytest.mark.parametrize(("minutes", "kept"), [(2.0, [4, 8, 9]), (None, [9])])
def test_by_default_a_checkpoint_is_written_by_the_clock(make_task, tmp_path, monkeypatch, minutes, kept):
    task, _ = make_task(steps=9)
    config = LoopConfig(steps=9, checkpoint_minutes=minutes, keep_checkpoints=9)
    now = [0.0]
    monkeypatch.setattr("cirray.training.callbacks.time.monotonic", lambda: now[0])
    train(task, config, TorchEngine, [Ticks(now, 30.0), Checkpoints(tmp_path)])
    assert [int(item.name[5:]) for item in sorted(tmp_path.glob("step-*"))] == kept
    assert LoopConfig().checkpoint_minutes == 5.0


def test_a_disk_that_writes_slowly_is_asked_less_often(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("cirray.training.callbacks.time.monotonic", lambda: now[0])
    clock = CheckpointClock()
    state = SimpleNamespace(config=LoopConfig(checkpoint_minutes=1.0), finished=False, step=1, world=1)
    with clock.writing():
        now[0] += 30
    found = []
    for wait in (61, 500, 40):
        now[0] += wait
        found.append(clock.due(state))
    assert found == [False, False, True]


def test_resuming_a_finished_run_trains_no_further(make_task, tmp_path):
    task, config = make_task(steps=2)
    history = train(task, config, TorchEngine, [Checkpoints(tmp_path)])
    before = weights(task)
    assert train(task, config, TorchEngine, resume=latest_checkpoint(tmp_path)) == history
    assert all(torch.equal(value, before[name]) for name, value in weights(task).items())


def test_only_the_newest_checkpoints_stay_and_half_written_ones_are_not_found(make_task, tmp_path):
    task, config = make_task(steps=6, checkpoint_every=1, keep_checkpoints=2)
    train(task, config, TorchEngine, [Checkpoints(tmp_path)])
    (tmp_path / "step-00000009").mkdir()
    (tmp_path / ".step-00000010.tmp").mkdir()
    assert sorted(item.name for item in tmp_path.glob("step-*")) == ["step-00000005", "step-00000006", "step-00000009"]
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000006"
    assert latest_checkpoint(tmp_path / "none") is None


def test_a_folder_that_is_no_checkpoint_is_refused(make_task, tmp_path):
    task, config = make_task()
    with pytest.raises(ArtifactError, match="no training checkpoint"):
        train(task, config, TorchEngine, resume=tmp_path)


def test_a_checkpoint_of_another_model_is_refused(make_task, tmp_path):
    task, config = make_task(steps=1)
    train(task, config, TorchEngine, [Checkpoints(tmp_path)])
    with pytest.raises(ArtifactError, match="another model"):
        train(Endless(), LoopConfig(steps=2), TorchEngine, resume=latest_checkpoint(tmp_path))


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(make_task):
    task, config = make_task()
    with pytest.raises(ConfigError, match=r"step 2.*nan.*optimizer\.lr"):
        train(task, config, TorchEngine, [Poisoned(2)])


def test_a_task_that_runs_dry_is_an_error():
    with pytest.raises(ConfigError, match="step 3 of 5"):
        train(Endless(end=3), LoopConfig(steps=5), TorchEngine)


def test_a_global_batch_that_does_not_divide_is_refused(make_task):
    task, config = make_task(batch=5)
    with pytest.raises(ConfigError, match="for example 6"):
        train(task, config, TorchEngine, world=2)


def test_the_history_file_holds_the_history_also_after_a_resume(make_task, tmp_path):
    task, config = make_task(steps=4, checkpoint_every=2)
    path = tmp_path / "history.jsonl"
    with pytest.raises(KeyboardInterrupt):
        train(task, config, TorchEngine, [HistoryFile(path), Checkpoints(tmp_path), Stop(3)])
    assert len(path.read_text().splitlines()) == 3
    history = train(task, config, TorchEngine, [HistoryFile(path)], resume=latest_checkpoint(tmp_path))
    assert [json.loads(line) for line in path.read_text().splitlines()] == history and len(history) == 4


def test_progress_moves_once_a_step_and_starts_where_the_run_does(tmp_path):
    moves = []
    bar = ShowProgress(lambda amount=1, note="", earlier=False: moves.append((amount, note, earlier)))
    config = LoopConfig(steps=4, log_every=4, checkpoint_every=3)
    train(Endless(), config, TorchEngine, [bar, Checkpoints(tmp_path)])
    assert [amount for amount, *_ in moves] == [1, 1, 1, 1] and moves[-1][1].startswith("loss")
    moves.clear()
    train(Endless(), config, TorchEngine, [bar], resume=tmp_path / "step-00000003")
    assert [(amount, earlier) for amount, _, earlier in moves] == [(3, True), (1, False)]


def test_gradients_are_clipped_and_the_norm_before_is_reported():
    model = torch.nn.Linear(2, 1, bias=False)
    engine = TorchEngine(model, LoopConfig(optimizer={"clip": 1.0}))
    engine.backward((model.weight * torch.tensor([[3.0, 4.0]])).sum())
    assert engine.step() == pytest.approx(5.0)
    first = engine._optimizer.state[model.weight]["exp_avg"]
    assert float(first.norm()) == pytest.approx(0.1 * 1.0, rel=1e-4)


def test_a_weight_without_gradient_still_decays():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    before = model[1].weight.detach().clone()
    engine = TorchEngine(model, LoopConfig(optimizer={"schedule": "constant", "warmup": 0, "lr": 0.1}))
    engine.backward(model[0](torch.ones(1, 2)).sum())
    engine.step()
    assert torch.allclose(model[1].weight, before * (1 - 0.1 * 0.05))


def test_bf16_keeps_fp32_weights_and_lowers_the_loss(make_task):
    task, config = make_task(steps=12, batch=8, log_every=4, precision="bf16", optimizer={"lr": 1e-2})
    history = train(task, config, TorchEngine)
    assert history[-1]["loss"] < history[0]["loss"]
    assert {value.dtype for value in task.model().state_dict().values()} == {torch.float32}


def test_bf16_weights_are_updated_in_fp32_and_the_model_ends_with_fp32(make_task, tmp_path):
    fields = {"steps": 12, "batch": 8, "log_every": 4, "precision": "bf16_weights", "optimizer": {"lr": 1e-2}}
    (task, config), seen = make_task(checkpoint_every=6, **fields), []

    class Look(Callback):
        def on_step(self, state, row):
            seen.append({item.dtype for item in state.engine.module.parameters()})

    history = train(task, config, TorchEngine, [Checkpoints(tmp_path), Look()])
    assert history[-1]["loss"] < history[0]["loss"]
    assert seen == [{torch.bfloat16}] * 12
    ended = weights(task)
    assert {value.dtype for value in ended.values()} == {torch.float32}
    assert any(not torch.equal(value, value.bfloat16().float()) for value in ended.values())
    again, _ = make_task(checkpoint_every=6, **fields)
    assert train(again, config, TorchEngine, resume=tmp_path / "step-00000006") == history
    assert all(torch.equal(value, ended[name]) for name, value in weights(again).items())


def test_a_small_update_is_not_lost_to_bf16_and_frozen_weights_come_back_as_they_were():
    model = torch.nn.Linear(4, 2)
    model.bias.requires_grad_(False)
    frozen, begin = model.bias.detach().clone(), model.weight.detach().clone()
    flat = {"schedule": "constant", "warmup": 0, "lr": 1e-5, "weight_decay": 0.0}
    engine = TorchEngine(model, LoopConfig(precision="bf16_weights", optimizer=flat))
    for _ in range(50):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = engine.module(torch.ones(1, 4)).sum()
        engine.backward(loss)
        engine.step()
    engine.close()
    assert torch.allclose(begin - model.weight, torch.full((2, 4), 5e-4), rtol=1e-2)
    assert torch.equal(model.bias, frozen)
