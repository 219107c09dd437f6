import torch
from torch.nn import functional
from whole_losses import composing


def scores(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) / 3


OWN = torch.arange(5)


def test_without_own_negatives_and_masks_the_loss_is_infonce():
    found = composing(scores(5, 5), OWN, 0.1)
    assert torch.allclose(found, functional.cross_entropy(scores(5, 5) / 0.1, OWN, reduction="none"))


def test_adding_the_reference_as_a_negative_never_lowers_the_loss():
    without, reference = composing(scores(5, 5), OWN, 0.1), scores(5, 1, seed=1)
    with_it = composing(scores(5, 5), OWN, 0.1, negative_BH=reference)
    assert bool((with_it >= without).all()) and bool((with_it > without).any())


def test_a_reference_that_is_the_target_is_dropped():
    reference = scores(5, 1, seed=1)
    dropped = torch.tensor([[True], [False], [True], [False], [False]])
    found = composing(scores(5, 5), OWN, 0.1, negative_BH=reference, dropped_BH=dropped)
    without = composing(scores(5, 5), OWN, 0.1)
    assert torch.equal(found[dropped[:, 0]], without[dropped[:, 0]]) and not torch.equal(found, without)


def test_hidden_targets_and_dropped_negatives_do_not_contribute():
    hidden = torch.zeros(5, 5, dtype=torch.bool)
    hidden[0, 3] = True
    dropped = torch.tensor([[False, True]] * 5)
    loud, louder = scores(5, 5), scores(5, 5)
    louder[0, 3] += 9
    own = torch.cat([scores(5, 1, 1), scores(5, 1, 2)], dim=1)
    other = own.clone()
    other[:, 1] += 9
    assert torch.equal(
        composing(loud, OWN, 0.1, hidden, own, dropped), composing(louder, OWN, 0.1, hidden, other, dropped)
    )
    assert not torch.equal(composing(loud, OWN, 0.1, None, own), composing(louder, OWN, 0.1, None, own))
