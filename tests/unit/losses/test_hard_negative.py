"""HN-NCE: the equation by hand, its limits, numbers that stay finite, and the released code's defects shown."""

import math

import pytest
import torch
from whole_losses import contrastive, hard_negative_nce

SCORES = [[0.9, 0.2, 0.5], [0.1, 0.7, 0.6], [0.3, 0.4, 0.8]]
OWN = torch.arange(3)


def random_scores(rows=6, columns=6, seed=0):
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def by_hand(scores, tau, alpha, beta):
    """The equation of the paper with plain numbers: one loss per row."""
    losses, count = [], len(scores)
    for i, row in enumerate(scores):
        hard = {k: math.exp(beta * row[k] / tau) for k in range(count) if k != i}
        weights = {j: (count - 1) * hard[j] / sum(hard.values()) for j in hard}
        own = math.exp(row[i] / tau)
        losses.append(-math.log(own / (alpha * own + sum(weights[j] * math.exp(row[j] / tau) for j in weights))))
    return losses


def test_beta_0_and_alpha_1_are_infonce_in_both_directions_summed():
    scores = random_scores()
    own = torch.arange(6)
    both = hard_negative_nce(scores, own, 0.1).mean() + hard_negative_nce(scores.T, own, 0.1).mean()
    wanted = contrastive(scores, own, 0.1).mean() + contrastive(scores.T, own, 0.1).mean()
    assert torch.allclose(both, wanted, atol=1e-5)
    assert not torch.allclose(hard_negative_nce(scores, own, 0.1, beta=0.5).mean(), wanted / 2, atol=1e-2)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.5), (0.7, 0.25)])
def test_three_rows_worked_out_by_hand_fix_the_normalisation(alpha, beta):
    found = hard_negative_nce(torch.tensor(SCORES), OWN, 0.5, alpha=alpha, beta=beta)
    assert found.tolist() == pytest.approx(by_hand(SCORES, 0.5, alpha, beta), rel=1e-5)
    transposed = [list(column) for column in zip(*SCORES, strict=True)]
    other = hard_negative_nce(torch.tensor(SCORES).T, OWN, 0.5, alpha=alpha, beta=beta)
    assert other.tolist() == pytest.approx(by_hand(transposed, 0.5, alpha, beta), rel=1e-5)
    assert found.tolist() != pytest.approx(other.tolist(), rel=1e-2)


def test_a_rows_weights_add_up_to_its_negatives_and_those_of_the_released_code_do_not():
    logits, own = random_scores() / 0.1, torch.arange(6)
    hard = (0.5 * logits).exp() * (1 - torch.eye(6))
    weights = 5 * hard / hard.sum(dim=1, keepdim=True)
    assert torch.allclose(weights.sum(dim=1), torch.full((6,), 5.0), rtol=1e-4)
    wanted = -(logits[own, own] - ((weights * logits.exp()).sum(dim=1) + logits[own, own].exp()).log())
    assert torch.allclose(hard_negative_nce(random_scores(), own, 0.1, beta=0.5), wanted, rtol=1e-4)
    released = 5 * hard / hard.sum(dim=1)  # the missing kept dimension: row i over the sum of row j
    assert not torch.allclose(released.sum(dim=1), torch.full((6,), 5.0), rtol=1e-1)


def test_transposing_the_scores_swaps_the_two_terms():
    scores, own = random_scores(), torch.arange(6)
    terms = [hard_negative_nce(given, own, 0.1, beta=0.5) for given in (scores, scores.T)]
    swapped = [hard_negative_nce(given, own, 0.1, beta=0.5) for given in (scores.T, scores)]
    assert torch.equal(terms[0], swapped[1]) and torch.equal(terms[1], swapped[0])
    assert not torch.allclose(terms[0], terms[1], atol=1e-2)


def test_at_tau_001_everything_is_finite_where_plain_exponentials_are_not():
    scores = random_scores().clamp(-1, 1)
    scores[0, 1], scores[1, 1] = 1.0, -1.0
    scores.requires_grad_()
    loss = hard_negative_nce(scores, torch.arange(6), 0.01, beta=0.5)
    loss.sum().backward()
    assert loss.isfinite().all() and scores.grad.isfinite().all() and float(loss[1].detach()) > 100
    assert not (scores.detach() / 0.01).exp().isfinite().all()


def test_hidden_candidates_count_as_absent_in_the_weights_too():
    scores, own = random_scores(4, 6), torch.tensor([0, 1, 2, 3])
    hidden = torch.zeros(4, 6, dtype=torch.bool)
    hidden[:, 4:] = True
    shorter = hard_negative_nce(scores[:, :4], own, 0.1, beta=0.5)
    assert torch.allclose(hard_negative_nce(scores, own, 0.1, hidden, beta=0.5), shorter, atol=1e-6)
    assert not torch.allclose(hard_negative_nce(scores, own, 0.1, beta=0.5), shorter, atol=1e-3)


def test_a_row_without_negatives_costs_nothing_and_gets_no_gradient():
    scores = random_scores(1, 1).requires_grad_()
    loss = hard_negative_nce(scores, torch.tensor([0]), 0.1, beta=0.5)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([0.0]) and scores.grad.tolist() == [[0.0]]


def test_held_weights_change_the_gradient_and_not_the_value():
    found = {}
    for held in (False, True):
        scores = random_scores().requires_grad_()
        loss = hard_negative_nce(scores, torch.arange(6), 0.1, beta=0.5, detach_weights=held).sum()
        loss.backward()
        found[held] = (float(loss.detach()), scores.grad)
    assert found[True][0] == found[False][0]
    assert not torch.allclose(found[True][1], found[False][1], atol=1e-3)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_ranks_rows_have_the_losses_of_one_process(world):
    scores, own = random_scores(8, 8), torch.arange(8)
    whole = hard_negative_nce(scores, own, 0.1, beta=0.5)
    for rank in range(world):
        rows = slice(rank * 8 // world, (rank + 1) * 8 // world)
        assert torch.allclose(hard_negative_nce(scores[rows], own[rows], 0.1, beta=0.5), whole[rows])
