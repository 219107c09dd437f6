import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cirray.core.errors import ConfigError
from cirray.models.towers.clip_tower import with_tokens
from cirray.models.towers.hf_blip2 import load_vision_tower

FIXTURES = Path(__file__).parents[3] / "fixtures"
small = SimpleNamespace(**runpy.run_path(str(FIXTURES / "small_clip.py")))


def finish(make, model, patches):
    """The last norm and projection, which unprojected tokens have not seen."""
    if make == "hf":
        return model.visual_projection(model.vision_model.post_layernorm(patches))
    return model.visual.ln_post(patches) @ model.visual.proj


@pytest.mark.parametrize("make", ["hf", "open"])
def test_unprojected_patches_become_the_projected_ones_by_norm_and_projection(make, tmp_path):
    model = getattr(small, f"{make}_model")()
    tower = load_vision_tower(getattr(small, f"save_{make}")(model, tmp_path / "source"))
    plain, every = with_tokens(tower, "unprojected"), with_tokens(tower, "all")
    tokens, projected = plain(small.images()), every(small.images())
    assert plain.width == tokens.shape[2] == 24 and plain.num_tokens == tokens.shape[1] == projected.shape[1]
    assert torch.allclose(tokens[:, 0, : small.EMBED], tower(small.images())[:, 0], atol=1e-6)
    assert not tokens[:, 0, small.EMBED :].any()
    assert torch.allclose(finish(make, model, tokens[:, 1:]), projected[:, 1:], atol=1e-5)
    plain.save(tmp_path / "saved")
    again = load_vision_tower(tmp_path / "saved")
    assert len({tower.digest, plain.digest, every.digest}) == 3
    assert again.digest == plain.digest and torch.equal(again(small.images()), tokens)


def test_a_tower_without_an_image_embedding_gives_no_other_tokens(tmp_path):
    pipeline = runpy.run_path(str(FIXTURES / "tiny_pipeline.py"))
    with pytest.raises(ConfigError, match="clip_tokens=unprojected is for CLIP towers"):
        with_tokens(load_vision_tower(pipeline["write_tower"](tmp_path)), "unprojected")
