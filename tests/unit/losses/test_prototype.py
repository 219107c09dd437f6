import pytest
import torch

from cirray.core.errors import ConfigError
from cirray.losses.prototype import prototype_distance


def means(seed):
    return torch.randn(2, 4, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_the_reverse_side_gets_no_gradient_and_the_forward_side_does(kind):
    forward, reverse = means(0), means(1)
    prototype_distance(forward, reverse, kind).sum().backward()
    assert reverse.grad is None
    assert forward.grad is not None and float(forward.grad.abs().sum()) > 0


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_equal_prototypes_cost_nothing_and_different_ones_something(kind):
    forward = means(0)
    assert prototype_distance(forward, forward.clone(), kind).abs().max() < 1e-6
    assert prototype_distance(forward, means(1), kind).min() > 1e-3


def test_the_distance_is_the_mean_over_the_width():
    forward, reverse = torch.zeros(1, 4), torch.zeros(1, 4)
    forward[0, 0] = 1.0
    assert float(prototype_distance(forward, reverse)[0]) == pytest.approx(1.0 / 4)


def test_an_unknown_distance_is_named():
    with pytest.raises(ConfigError, match="manhattan"):
        prototype_distance(means(0), means(1), "manhattan")
