import math

import pytest
import torch
from torch.nn import functional

from cirray.losses.nt_xent import nt_xent
from cirray.losses.soft_text import symmetric_contrast


def rows(count, seed, width=8):
    return functional.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def naive(left, right, temperature):
    """SimCLR's loss, item by item over the 2N vectors."""
    every, count = [*left, *right], len(left)
    total = 0.0
    for at, asking in enumerate(every):
        scores = {other: float(asking @ vector) / temperature for other, vector in enumerate(every) if other != at}
        total += math.log(sum(map(math.exp, scores.values()))) - scores[(at + count) % (2 * count)]
    return total / (2 * count)


def test_nt_xent_is_simclrs_loss_over_both_sides_and_not_the_symmetric_contrast():
    left, right, own = rows(5, 0), rows(5, 1), torch.arange(5)
    found = nt_xent(left, right, left, right, own, 0.25).mean()
    assert float(found) == pytest.approx(naive(left, right, 0.25), rel=1e-5)
    assert float(symmetric_contrast(left, right, left, right, own, 0.25).mean()) < float(found) - 0.1


def test_a_ranks_rows_give_their_part_of_the_whole_batchs_loss_and_gradient():
    left, right = rows(6, 2).requires_grad_(), rows(6, 3)
    whole = nt_xent(left, right, left, right, torch.arange(6), 0.25)
    halves = [
        nt_xent(left[part], right[part], left, right, torch.arange(6)[part], 0.25)
        for part in (slice(0, 3), slice(3, 6))
    ]
    assert torch.allclose(torch.cat(halves), whole)
    gradients = [torch.autograd.grad(loss.sum(), left, retain_graph=True)[0] for loss in (torch.cat(halves), whole)]
    assert torch.allclose(*gradients, atol=1e-5) and gradients[0].abs().max() > 0.1


def test_a_vector_with_its_own_twin_alone_has_no_loss():
    one = rows(1, 4)
    assert float(nt_xent(one, rows(1, 5), one, rows(1, 5), torch.arange(1), 0.25)) == pytest.approx(0.0, abs=1e-6)
