import pytest
import torch
from torch.nn import functional

from cirray.losses import sums
from cirray.losses.soft_text import caption_shares, caption_teacher, soft_text, symmetric_contrast


def rows(count, seed, width=8):
    return functional.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


OWN = torch.arange(6)


def test_the_soft_alignment_is_zero_when_pseudo_sentences_are_the_captions_at_one_temperature():
    captions = rows(6, 0)
    teacher = caption_teacher(captions, captions, 0.07)
    assert soft_text(captions, captions, OWN, teacher, 0.07, hardness=0.0).abs().max() < 1e-5
    assert soft_text(rows(6, 1), captions, OWN, teacher, 0.07, hardness=0.0).mean() > 0.1


def test_teacher_rows_sum_to_one_and_carry_no_gradient():
    captions = rows(6, 0).requires_grad_()
    shares = caption_shares(captions, captions, 0.05, rows(6, 2), mix=0.3)
    teacher = caption_teacher(captions, captions, 0.05, rows(6, 2), mix=0.3)
    assert torch.allclose(shares.sum(1), torch.ones(6)) and torch.allclose(teacher.mean_BD, shares @ captions)
    assert not teacher.mean_BD.requires_grad and not teacher.inform_B.requires_grad


def test_equal_captions_get_equal_mass():
    captions = rows(6, 0)
    captions[4] = captions[1]
    teacher = caption_shares(captions, captions, 0.05)
    assert torch.allclose(teacher[1, 1], teacher[1, 4]) and torch.allclose(teacher[:, 1], teacher[:, 4])


def test_a_cold_teacher_turns_the_soft_alignment_into_the_hard_one():
    captions, pseudo = rows(6, 0), rows(6, 3)
    cold = caption_teacher(captions, captions, 1e-4)
    soft = soft_text(pseudo, captions, OWN, cold, 0.07, hardness=0.0)
    assert torch.allclose(soft, soft_text(pseudo, captions, OWN, cold, 0.07, hardness=1.0), atol=1e-5)
    warm = caption_teacher(captions, captions, 0.5)
    assert not torch.allclose(soft, soft_text(pseudo, captions, OWN, warm, 0.07, hardness=0.0), atol=1e-2)


def test_hardness_one_is_the_cross_entropy_with_the_own_caption():
    captions, pseudo = rows(6, 0), rows(6, 3)
    found = soft_text(pseudo, captions, OWN, caption_teacher(captions, captions, 0.05), 0.07, hardness=1.0)
    assert torch.allclose(found, functional.cross_entropy(pseudo @ captions.T / 0.07, OWN, reduction="none"), atol=1e-5)


def test_the_mixed_teacher_holds_the_share_of_what_the_image_says():
    captions, images = rows(6, 0), rows(6, 5)
    plain = caption_shares(captions, captions, 0.05)
    mixed = caption_shares(captions, captions, 0.05, images, mix=0.25)
    seen = (images @ captions.T / 0.01).softmax(1)
    assert torch.allclose(mixed, 0.75 * plain + 0.25 * seen, atol=1e-6)


def test_the_mapping_loss_is_the_mean_of_both_directions():
    left, right = rows(6, 0), rows(6, 1)
    found = symmetric_contrast(left, right, left, right, OWN, 0.1)
    logits = left @ right.T / 0.1
    both = [functional.cross_entropy(matrix, OWN, reduction="none") for matrix in (logits, logits.T)]
    assert torch.allclose(found, (both[0] + both[1]) / 2, atol=1e-6)
    assert found.mean() != pytest.approx(float(both[0].mean()), abs=1e-4)


@pytest.mark.parametrize("hardness", [0.0, 0.3])
def test_the_soft_alignment_is_the_divergence_of_whole_rows_also_in_tiles(monkeypatch, hardness):
    captions, images, teachers = rows(6, 0), rows(6, 5), []
    pseudo = rows(6, 3).requires_grad_()
    shares = caption_shares(captions, captions, 0.05, images, mix=0.25)
    log_q = (pseudo @ captions.T / 0.07).log_softmax(1)
    naive = (1 - hardness) * functional.kl_div(log_q, shares, reduction="none").sum(1) - hardness * log_q.diagonal()
    wanted = torch.autograd.grad(naive.sum(), pseudo)[0]
    for whole in (2**24, 1):
        monkeypatch.setattr(sums, "WHOLE_SCORES", whole)
        monkeypatch.setattr(sums, "_TILE", 4)
        monkeypatch.setattr(sums, "_ROWS", 2)
        teachers.append(caption_teacher(captions, captions, 0.05, images, mix=0.25))
        found = soft_text(pseudo, captions, OWN, teachers[-1], 0.07, hardness)
        assert torch.allclose(found, naive, atol=1e-5)
        assert torch.allclose(torch.autograd.grad(found.sum(), pseudo)[0], wanted, atol=1e-4) and wanted.abs().max() > 1
    assert torch.allclose(teachers[0].inform_B, teachers[1].inform_B, atol=1e-6)
