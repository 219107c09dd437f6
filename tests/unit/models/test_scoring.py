"""The one scorer and the projections before it, under autocast."""

import torch
from torch.nn import functional

from cirray.models.scoring import Projection, score, unit


def nearly_equal(count, width=64):
    """Unit vectors that nearly agree, as those of a fresh network do."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(1, width, generator=generator)
    return functional.normalize(base + 5e-2 * torch.randn(count, width, generator=generator), dim=-1)


def test_scores_keep_their_digits_under_bf16_autocast():
    query_BD, gallery_NQD = nearly_equal(5), nearly_equal(24).view(8, 3, 64)
    exact = score(query_BD, gallery_NQD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(score(query_BD, gallery_NQD), exact)
        rounded = (query_BD @ gallery_NQD.reshape(24, 64).T).float().view(5, 8, 3).amax(dim=2)
    assert (rounded - exact).abs().max() > 0.1 * (exact.max() - exact.min())


def test_unit_vectors_keep_their_differences_under_bf16_autocast():
    torch.manual_seed(0)
    projection, tokens = Projection(64, 16), nearly_equal(6)
    exact = unit(tokens, projection)
    plain = torch.nn.Linear(64, 16)
    plain.load_state_dict(projection.state_dict())
    assert torch.equal(functional.normalize(plain(tokens), dim=-1), exact)
    assert torch.allclose(exact.norm(dim=-1), torch.ones(6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(unit(tokens, projection), exact)
        rounded = functional.normalize(plain(tokens).float(), dim=-1)
    assert (rounded - exact).abs().max() > 1e-3


def test_an_image_scores_by_its_best_token():
    query_BD, gallery_NQD = nearly_equal(7), nearly_equal(24).view(8, 3, 64)
    whole = score(query_BD, gallery_NQD)
    naive = torch.stack([torch.stack([max(q @ token for token in image) for image in gallery_NQD]) for q in query_BD])
    assert torch.allclose(whole, naive, atol=1e-6)
