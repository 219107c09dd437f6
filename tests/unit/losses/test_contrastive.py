import math

import pytest
import torch
from whole_losses import contrastive

from cirray.losses.hidden import Hidden
from cirray.losses.output import weighted_mean


def test_equal_scores_cost_the_log_of_the_candidates():
    loss_B = contrastive(torch.zeros(3, 5), torch.tensor([0, 4, 2]), 0.07)
    assert torch.allclose(loss_B, torch.full((3,), math.log(5)))


def test_a_better_positive_costs_less_and_a_colder_temperature_sharpens():
    scores_BN = torch.tensor([[0.9, 0.1, 0.0]])
    good, bad = contrastive(scores_BN, torch.tensor([0]), 0.1), contrastive(scores_BN, torch.tensor([1]), 0.1)
    assert good < bad
    assert contrastive(scores_BN, torch.tensor([0]), 0.05) < good


def test_smoothing_equals_torch_cross_entropy():
    scores_BN, positive_B = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 0, 5, 3])
    wanted = torch.nn.functional.cross_entropy(scores_BN / 0.2, positive_B, label_smoothing=0.1, reduction="none")
    assert torch.allclose(contrastive(scores_BN, positive_B, 0.2, label_smoothing=0.1), wanted, atol=1e-6)
    assert not torch.allclose(contrastive(scores_BN, positive_B, 0.2), wanted, atol=1e-3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_hidden_candidate_counts_as_absent(smoothing):
    scores_BN = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    hidden_BN = torch.zeros(2, 4, dtype=torch.bool)
    hidden_BN[:, 3] = True
    positive_B = torch.tensor([0, 2])
    shorter = contrastive(scores_BN[:, :3], positive_B, 0.1, label_smoothing=smoothing)
    assert torch.allclose(contrastive(scores_BN, positive_B, 0.1, hidden_BN, smoothing), shorter)
    assert not torch.allclose(contrastive(scores_BN, positive_B, 0.1, None, smoothing), shorter)


def test_a_hidden_candidate_gets_no_gradient():
    scores_BN = torch.zeros(1, 3, requires_grad=True)
    contrastive(scores_BN, torch.tensor([0]), 0.1, torch.tensor([[False, False, True]]), 0.1).sum().backward()
    assert scores_BN.grad is not None
    assert scores_BN.grad[0, 2] == 0 and scores_BN.grad[0, 1] != 0


def test_only_further_copies_of_the_own_target_are_hidden():
    hidden = Hidden(torch.tensor([7, 8, 7, 9]), torch.tensor([0, 1, 2]))
    assert hidden.mask().tolist() == [
        [False, False, True, False],
        [False, False, False, False],
        [True, False, False, False],
    ]


def test_the_weighted_mean_ignores_rows_of_weight_zero():
    loss_B, weight_B = torch.tensor([1.0, 3.0, 100.0]), torch.tensor([1.0, 3.0, 0.0])
    assert float(weighted_mean(loss_B, weight_B)) == pytest.approx(10 / 4)
    assert float(weighted_mean(loss_B, torch.zeros(3))) == 0.0
