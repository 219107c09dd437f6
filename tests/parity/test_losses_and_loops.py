"""The vectorised losses against plain loops over rows, in value and in gradient."""

import pytest
import torch
from whole_losses import contrastive

from cirray.losses import sums
from cirray.losses.hidden import Hidden
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


def hidden_of(positive, gallery):
    """Every kind of thing that is hidden, as integers."""
    keys = torch.tensor([0, 1, 2, 3, 4, 5, 0, 7, -1])
    further = torch.tensor([[7, -1], [-1, -1], [3, 4], [-1, -1], [-1, 1], [-1, -1]])
    leads = torch.tensor([[-1]] * 5 + [[2]] + [[-1]] * 3)
    absent = torch.arange(len(gallery)) == 4
    return Hidden(keys, positive, True, further, leads, absent)


def by_rule(hidden):
    """The mask by its definition, one pair after another."""
    keys, mask = hidden.key_N.tolist(), torch.zeros(6, 9, dtype=torch.bool)
    for row, own in enumerate(hidden.positive_B.tolist()):
        for place, key in enumerate(keys):
            copy = key == keys[own] or key in hidden.further_BK[row].tolist() or key == -1
            mask[row, place] = copy or keys[own] in hidden.leads_NK[place].tolist() or bool(hidden.absent_N[place])
        mask[row, own] = False
    return mask


@pytest.mark.parametrize("power", [(1.0,), (1.5, 0.5), (1.0, 0.0)])
@pytest.mark.parametrize(("rows", "tile"), [(1, 3), (4, 24), (6, 1), (50, 10_000)])
def test_sums_in_tiles_equal_those_of_the_whole_matrix(monkeypatch, rows, tile, power):
    monkeypatch.setattr(sums, "_TILE", tile)
    query, gallery, tau, positive, _ = tensors(torch.float32)
    hidden = hidden_of(positive, gallery)
    assert torch.equal(hidden.mask(), by_rule(hidden)) and hidden.mask().sum() > 12
    blind = sums.row_sums(score, query, gallery, tau, Hidden(hidden.key_N, positive), power, chunk=rows)
    for name in ("own_B", "others_BK", "total_B"):
        tiles, whole = (sums.row_sums(score, query, gallery, tau, hidden, power, chunk) for chunk in (rows, None))
        mine, theirs = getattr(tiles, name), getattr(whole, name)
        assert torch.equal(tiles.count_B.long(), whole.count_B)
        assert torch.allclose(mine, theirs, atol=1e-5)
        pairs = zip(gradients(mine, query, gallery, tau), gradients(theirs, query, gallery, tau), strict=True)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs), name
        assert name == "own_B" or not torch.allclose(mine, getattr(blind, name), atol=1e-2)
    for chunk in (rows, None):  # what only label smoothing reads is left out where nothing is smoothed
        few, all_of_it = (
            sums.row_sums(score, query, gallery, tau, hidden, power, chunk, totals) for totals in (False, True)
        )
        assert few.total_B is None and torch.equal(few.others_BK, all_of_it.others_BK)
        more = few.others_BK.sum() + few.own_B.sum(), all_of_it.others_BK.sum() + all_of_it.own_B.sum()
        pairs = zip(*(gradients(item, query, gallery, tau) for item in more), strict=True)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


def test_targets_over_queries_are_summed_in_tiles_too(monkeypatch):
    monkeypatch.setattr(sums, "_TILE", 8)
    query, gallery, tau, positive, _ = tensors(torch.float32)
    hidden = Hidden(torch.arange(6), positive)
    found = [
        sums.row_sums(lambda images, texts: score(texts, images).T, gallery[:6], query, tau, hidden, chunk=chunk)
        for chunk in (2, None)
    ]
    assert torch.allclose(found[0].others_BK, found[1].others_BK, atol=1e-5)
    one, other = (gradients(item.others_BK, query, gallery, tau) for item in found)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one, other, strict=True))


def test_only_a_large_matrix_is_taken_in_tiles_by_itself(monkeypatch):
    query, gallery, tau, positive, _ = tensors(torch.float32)
    heights = []

    def listening(rows, candidates):
        heights.append(len(rows))
        return score(rows, candidates)

    for limit in (6 * 9 * 3, 6 * 9 * 3 - 1):
        monkeypatch.setattr(sums, "WHOLE_SCORES", limit)
        monkeypatch.setattr(sums, "_ROWS", 4)
        sums.row_sums(listening, query, gallery, tau, Hidden(torch.arange(9), positive))
    assert heights == [6, 4, 2]


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
    fast = prototype_distance(forward.mean(dim=1), reverse.mean(dim=1))
    assert torch.allclose(fast, slow, atol=1e-6)
    assert torch.allclose(*gradients(fast, forward), *gradients(slow, forward), atol=1e-6)
