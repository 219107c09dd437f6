"""AdamW and its schedules beside plain torch loops, step by step: rates, beta1, weights."""

import pytest
import torch
from pydantic import ValidationError

from cirray.training.config import LoopConfig, OptimizerConfig
from cirray.training.optim import Schedule, build_optimizer
from cirray.training.torch_engine import TorchEngine

STEPS = 40
SPRC = {"lr": 1e-3, "weight_decay": 0.05, "decay": "all", "betas": (0.9, 0.98), "eps": 1e-7, "warmup": 0.1,
        "clip": None, "cycled_beta1": (0.95, 0.85)}  # fmt: skip


class Small(torch.nn.Module):
    """A matrix, a bias, a norm and a temperature."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layer, self.norm = torch.nn.Linear(3, 3), torch.nn.LayerNorm(3)
        self.temperature = torch.nn.Parameter(torch.tensor([0.07]))
        for item in self.parameters():
            item.data = torch.rand(item.shape, generator=generator)

    def forward(self, step):
        inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        return self.norm(self.layer(inputs)).pow(2).mean() / self.temperature.squeeze()


def factors(config):
    return Schedule(config).factor


def twin(steps, epochs):
    """SPRC's optimiser as its paper's code sets torch's up: one group, a cycle of `epochs` times `steps` steps."""
    model, seen = Small(), []
    groups = [{"params": model.parameters(), "lr": 1e-3, "betas": (0.9, 0.98), "eps": 1e-7, "weight_decay": 0.05}]
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1e-3, pct_start=0.1, steps_per_epoch=steps, epochs=epochs
    )
    for step in range(steps):
        seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"][0]))
        optimizer.zero_grad()
        model(step).backward()
        optimizer.step()
        schedule.step()
    return seen, torch.cat([item.detach().flatten() for item in model.parameters()])


def ours(steps=STEPS, stretch=1.0, **changes):
    optimizer = OptimizerConfig(**{**SPRC, "schedule_stretch": stretch, **changes})
    engine, seen = TorchEngine(Small(), LoopConfig(steps=steps, optimizer=optimizer)), []
    for step in range(steps):
        rate = engine.lr
        engine.backward(engine.module(step))
        engine.step()
        group = engine._optimizer.param_groups[0]
        assert group["lr"] == rate
        seen.append((rate, group["betas"][0]))
    return seen, torch.cat([item.detach().flatten() for item in engine.module.parameters()])


@pytest.mark.parametrize("epochs", [1, 2])
def test_sprcs_optimiser_takes_the_steps_of_a_plain_torch_loop_rate_by_rate_and_weight_by_weight(epochs):
    (rates, weights), (wanted, goal) = ours(stretch=float(epochs)), twin(STEPS, epochs)
    assert [rate for rate, _ in rates] == pytest.approx([rate for rate, _ in wanted], rel=1e-6)
    assert [beta for _, beta in rates] == pytest.approx([beta for _, beta in wanted], rel=1e-6)
    assert {round(beta, 6) for _, beta in rates} >= {0.95, 0.85}
    assert float((weights - goal).abs().max()) < 1e-7


@pytest.mark.parametrize("changes", [{"cycled_beta1": None}, {"decay": "matrices"}, {"clip": 1.0}, {"warmup": 0.2}])
def test_each_setting_that_differs_from_the_twin_is_seen_in_the_weights(changes):
    assert float((ours(**changes)[1] - twin(STEPS, 1)[1]).abs().max()) > 1e-5


def test_a_resumed_engine_goes_on_with_the_cycle(tmp_path):
    config = LoopConfig(steps=STEPS, optimizer=OptimizerConfig(**SPRC))
    first = TorchEngine(Small(), config)
    for step in range(STEPS // 2):
        first.backward(first.module(step))
        first.step()
    first.save(tmp_path)
    second = TorchEngine(Small(), config)
    second.load(tmp_path)
    for step in range(STEPS // 2, STEPS):
        second.backward(second.module(step))
        second.step()
    weights = torch.cat([item.detach().flatten() for item in second.module.parameters()])
    assert float((weights - ours()[1]).abs().max()) < 1e-7


def test_beta1_is_cycled_by_one_cycle_alone_and_between_decays():
    with pytest.raises(ValidationError, match="goes with schedule one_cycle, not with constant"):
        OptimizerConfig(schedule="constant", cycled_beta1=(0.95, 0.85))
    with pytest.raises(ValidationError, match=r"must be two decays in \[0, 1\)"):
        OptimizerConfig(cycled_beta1=(0.95, 1.85))


def test_a_stretched_cycle_ends_high_as_the_released_code_does():
    config = LoopConfig(steps=50, optimizer=OptimizerConfig(schedule_stretch=1.6, warmup=0.02))
    assert 0.28 < factors(config)(49) < 0.36
    assert factors(LoopConfig(steps=50))(49) < 1e-4


@pytest.mark.parametrize("name", ["one_cycle", "cosine", "constant"])
def test_every_schedule_rises_to_the_peak(name):
    config = LoopConfig(steps=100, optimizer=OptimizerConfig(schedule=name, warmup=0.1))
    found = [factors(config)(step) for step in range(100)]
    assert found[0] < 0.15 and max(found) == pytest.approx(1.0)
    assert (found[-1] > 0.99) == (name == "constant")


def test_no_warm_up_starts_at_the_peak():
    for name in ("one_cycle", "cosine", "constant"):
        config = LoopConfig(steps=10, optimizer=OptimizerConfig(schedule=name, warmup=0))
        assert factors(config)(0) == pytest.approx(1.0)


def test_vectors_are_decayed_where_asked_alone_and_frozen_weights_never_trained():
    def decays(**settings):
        model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).requires_grad_(False))
        groups = build_optimizer(model, LoopConfig(optimizer=OptimizerConfig(**settings))).param_groups
        return [(group["weight_decay"], [tuple(item.shape) for item in group["params"]]) for group in groups]

    assert decays() == [(0.05, [(2, 2)]), (0.0, [(2,)])]
    assert decays(decay="all") == [(0.05, [(2, 2)]), (0.05, [(2,)])]


def test_the_step_schedule_warms_up_and_drops_to_a_tenth_at_half():
    config = LoopConfig(steps=100, optimizer={"schedule": "step", "warmup": 0.1, "lr": 1.0})
    factor = factors(config)
    assert [factor(step) for step in (0, 4, 9, 49, 50, 99)] == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.1, 0.1])
