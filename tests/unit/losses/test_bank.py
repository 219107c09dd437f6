"""The bank loss against plain cross-entropy: value, gradients, blocks, hidden rows."""

import pytest
import torch
from torch.nn import functional
from whole_losses import contrastive

from cirray.losses.bank import BankRows, bank_infonce
from cirray.models.scoring import score

TAU = 0.07


def unit(*shape, seed=0):
    return functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture
def queries():
    return unit(6, 8, seed=1).requires_grad_()


@pytest.fixture
def bank():
    return unit(20, 3, 8, seed=2)


def gradients(loss_B, *of):
    weights = torch.arange(1.0, len(loss_B) + 1)
    return torch.autograd.grad((loss_B * weights).sum(), of)


def naive(queries, bank, positive, tau, hidden=None):
    return contrastive(score(queries, bank), positive, tau, hidden)


def test_the_bank_loss_equals_in_batch_contrast_when_the_batchs_targets_are_the_bank(queries):
    targets, tau = unit(6, 3, 8, seed=3), torch.tensor(TAU, requires_grad=True)
    own = torch.arange(6)
    found, wanted = bank_infonce(score, queries, BankRows(targets), own, tau), naive(queries, targets, own, tau)
    assert torch.allclose(found, wanted, atol=1e-5)
    for mine, theirs in zip(gradients(found, queries, tau), gradients(wanted, queries, tau), strict=True):
        assert theirs.abs().max() > 1e-2 and torch.allclose(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_the_best_token_in_blocks_equals_the_full_matrix(queries, bank, rows):
    positive = torch.tensor([0, 19, 5, 5, 11, 2])
    hidden = torch.rand(6, 20, generator=torch.Generator().manual_seed(4)) < 0.3
    hidden[torch.arange(6), positive] = False
    found = bank_infonce(score, queries, BankRows(bank), positive, TAU, lambda block: hidden[:, block], rows=rows)
    wanted = naive(queries, bank, positive, TAU, hidden)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.allclose(gradients(found, queries)[0], gradients(wanted, queries)[0], atol=1e-4)
    assert not torch.allclose(found, naive(queries, bank, positive, TAU), atol=1e-3)


def test_permuting_the_rows_of_the_bank_changes_nothing(queries, bank):
    positive, order = torch.tensor([0, 19, 5, 5, 11, 2]), torch.randperm(20, generator=torch.Generator().manual_seed(5))
    moved = torch.argsort(order)[positive]
    found = bank_infonce(score, queries, BankRows(bank), positive, TAU, rows=6)
    other = bank_infonce(score, queries, BankRows(bank[order]), moved, TAU, rows=6)
    assert torch.allclose(found, other, atol=1e-5)
    assert not torch.allclose(found, bank_infonce(score, queries, BankRows(bank[order]), positive, TAU), atol=1e-3)


def test_no_gradient_reaches_the_rows_of_the_bank(queries, bank):
    rows = bank.clone().requires_grad_()
    loss = bank_infonce(score, queries, BankRows(rows), torch.zeros(6, dtype=torch.long), TAU).sum()
    loss.backward()
    assert rows.grad is None and queries.grad.abs().max() > 1e-2


def test_a_block_that_is_hidden_whole_leaves_finite_numbers(queries, bank):
    hidden = torch.ones(6, 20, dtype=torch.bool)
    hidden[:, [3, 4]] = False
    positive = torch.full((6,), 3)
    found = bank_infonce(score, queries, BankRows(bank), positive, 0.01, lambda block: hidden[:, block], rows=5)
    assert torch.allclose(found, naive(queries, bank, positive, 0.01, hidden), atol=1e-5)
    assert gradients(found, queries)[0].isfinite().all()


def test_half_the_memory_costs_digits_only(queries, bank):
    positive = torch.tensor([0, 19, 5, 5, 11, 2])
    exact, half = (bank_infonce(score, queries, BankRows(kind), positive, TAU) for kind in (bank, bank.half()))
    assert 0 < (exact - half).abs().max() < 0.02
