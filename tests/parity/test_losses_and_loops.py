"""The vectorised losses against plain loops over rows, in value and in gradient."""

import pytest
import torch

from cirray.losses.contrastive import contrastive, contrastive_chunked
from cirray.losses.prototype import prototype_distance
from cirray.models.scoring import score


def tensors(dtype=torch.float64):
    rng = torch.Generator().manual_seed(0)
    query = torch.randn(6, 5, generator=rng, dtype=dtype).requires_grad_()
    gallery = torch.randn(9, 3, 5, generator=rng, dtype=dtype).requires_grad_()
    tau = torch.tensor(0.3, dtype=dtype, requires_grad=True)
    hidden = torch.zeros(6, 9, dtype=torch.bool)
    hidden[0, 4] = hidden[3, 8] = True
    return query, gallery, tau, torch.tensor([0, 1, 2, 3, 4, 5]), hidden


def by_loops(query, gallery, tau, positive, hidden, smoothing):
    losses = []
    for i in range(len(query)):
        logits = {
            j: torch.stack([query[i] @ gallery[j, k] for k in range(gallery.shape[1])]).max() / tau
            for j in range(len(gallery))
            if not hidden[i, j]
        }
        norm = torch.stack([value.exp() for value in logits.values()]).sum().log()
        nll = {j: norm - value for j, value in logits.items()}
        spread = torch.stack(list(nll.values())).mean()
        losses.append((1 - smoothing) * nll[int(positive[i])] + smoothing * spread)
    return torch.stack(losses)


def gradients(loss, *inputs):
    return torch.autograd.grad(loss.double().mean(), inputs)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_contrastive_loss_equals_a_loop(smoothing):
    query, gallery, tau, positive, hidden = tensors()
    fast = contrastive(score(query, gallery), positive, tau, hidden, smoothing)
    slow = by_loops(query, gallery, tau, positive, hidden, smoothing)
    assert torch.allclose(fast.double(), slow, atol=1e-5)
    for a, b in zip(gradients(fast, query, gallery, tau), gradients(slow, query, gallery, tau), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_the_loop_sees_a_wrong_positive():
    query, gallery, tau, positive, hidden = tensors()
    fast = contrastive(score(query, gallery), positive.flip(0), tau, hidden)
    assert not torch.allclose(fast.double(), by_loops(query, gallery, tau, positive, hidden, 0.0), atol=1e-2)


@pytest.mark.parametrize("rows", [1, 4, 6, 50])
def test_the_chunked_loss_equals_the_full_matrix(rows):
    query, gallery, tau, positive, hidden = tensors(torch.float32)
    full = contrastive(score(query, gallery), positive, tau, hidden, 0.1)
    chunked = contrastive_chunked(score, query, gallery, positive, tau, hidden, 0.1, rows)
    assert torch.allclose(full, chunked, atol=1e-6)
    for a, b in zip(gradients(full, query, gallery, tau), gradients(chunked, query, gallery, tau), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_scoring_equals_a_loop():
    query, gallery, *_ = tensors()
    whole = score(query, gallery)
    for i in range(len(query)):
        for j in range(len(gallery)):
            best = max((query[i] @ gallery[j, k]).item() for k in range(3))
            assert whole[i, j].item() == pytest.approx(best)


def test_the_prototype_distance_equals_a_loop():
    rng = torch.Generator().manual_seed(2)
    forward, reverse = torch.randn(3, 4, 5, generator=rng), torch.randn(3, 4, 5, generator=rng)
    forward.requires_grad_()
    slow = torch.stack(
        [sum((forward[i, :, w].mean() - reverse[i, :, w].mean()) ** 2 for w in range(5)) / 5 for i in range(3)]
    )
    fast = prototype_distance(forward, reverse)
    assert torch.allclose(fast, slow, atol=1e-6)
    assert torch.allclose(*gradients(fast, forward), *gradients(slow, forward), atol=1e-6)
