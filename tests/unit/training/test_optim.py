import pytest
import torch

from cirray.training.config import LoopConfig, OptimizerConfig
from cirray.training.optim import build_optimizer, build_schedule, lr_factor


def test_one_cycle_equals_torchs():
    config = LoopConfig(steps=40, optimizer=OptimizerConfig(lr=1e-3, warmup=0.1, start_divisor=25))
    ours, theirs = lr_factor(config), torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(theirs, 1e-3, total_steps=40, pct_start=0.1)
    for step in range(40):
        assert ours(step) * 1e-3 == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-6)
        theirs.step()
        schedule.step()


def test_a_stretched_cycle_ends_high_as_the_released_code_does():
    config = LoopConfig(steps=50, optimizer=OptimizerConfig(schedule_stretch=1.6, warmup=0.02))
    assert 0.28 < lr_factor(config)(49) < 0.36
    assert lr_factor(LoopConfig(steps=50))(49) < 1e-4


@pytest.mark.parametrize("name", ["one_cycle", "cosine", "constant"])
def test_every_schedule_rises_to_the_peak(name):
    config = LoopConfig(steps=100, optimizer=OptimizerConfig(schedule=name, warmup=0.1))
    factors = [lr_factor(config)(step) for step in range(100)]
    assert factors[0] < 0.15 and max(factors) == pytest.approx(1.0)
    assert (factors[-1] > 0.99) == (name == "constant")


def test_no_warm_up_starts_at_the_peak():
    for name in ("one_cycle", "cosine", "constant"):
        config = LoopConfig(steps=10, optimizer=OptimizerConfig(schedule=name, warmup=0))
        assert lr_factor(config)(0) == pytest.approx(1.0)


def test_vectors_are_not_decayed_and_frozen_weights_not_trained():
    model = torch.nn.Linear(2, 2)
    frozen = torch.nn.Linear(2, 2).requires_grad_(False)
    optimizer = build_optimizer(torch.nn.Sequential(model, frozen), LoopConfig())
    decay = {group["weight_decay"]: [tuple(item.shape) for item in group["params"]] for group in optimizer.param_groups}
    assert decay == {0.05: [(2, 2)], 0.0: [(2,)]}


def test_the_schedule_drives_the_optimiser():
    optimizer = build_optimizer(torch.nn.Linear(1, 1), LoopConfig(steps=10))
    schedule = build_schedule(optimizer, LoopConfig(steps=10))
    seen = []
    for _ in range(3):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert seen == pytest.approx([1e-3 * lr_factor(LoopConfig(steps=10))(step) for step in range(3)])


def test_the_step_schedule_warms_up_and_drops_to_a_tenth_at_half():
    config = LoopConfig(steps=100, optimizer={"schedule": "step", "warmup": 0.1, "lr": 1.0})
    factor = lr_factor(config)
    assert [factor(step) for step in (0, 4, 9, 49, 50, 99)] == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.1, 0.1])
