import json

import pytest
import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    OPTConfig,
)

from cirray.core.errors import ArtifactError
from cirray.data.config import TransformConfig
from cirray.models.config import VisionTowerConfig
from cirray.models.towers.hf_blip2 import build_vision_tower, load_vision_tower

SMALL = VisionTowerConfig(image_size=16, patch_size=8, width=12, layers=1, heads=2, intermediate=16)


@pytest.fixture
def tower():
    torch.manual_seed(0)
    return build_vision_tower(SMALL, TransformConfig(size=16, mean=(0.5, 0.4, 0.3)))


@pytest.fixture
def images():
    return torch.randint(256, (3, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_a_tower_comes_back_with_its_tokens_its_transform_and_its_digest(tower, images, tmp_path):
    tower.save(tmp_path)
    again = load_vision_tower(tmp_path)
    assert torch.equal(again(images), tower(images))
    assert again.transform == tower.transform and again.digest == tower.digest
    assert tower(images).shape == (3, tower.num_tokens, tower.width) == (3, 5, 12)


def test_digest_changes_with_a_weight_and_with_the_transform(tower):
    digests = {tower.digest}
    torch.manual_seed(0)
    digests.add(build_vision_tower(SMALL, TransformConfig(size=16)).digest)
    torch.manual_seed(1)
    digests.add(build_vision_tower(SMALL, TransformConfig(size=16, mean=(0.5, 0.4, 0.3))).digest)
    assert len(digests) == 3


def test_pixels_are_normalised_by_the_transform(tower, images):
    pixels = (images.float() / 255 - torch.tensor((0.5, 0.4, 0.3))) / torch.tensor(tower.transform.std)
    expected = tower.model(pixels.permute(0, 3, 1, 2)).last_hidden_state
    assert torch.allclose(tower(images), expected, atol=1e-5)


def test_a_tower_is_frozen_until_its_own_pretraining(tower):
    assert not any(weight.requires_grad for weight in tower.parameters()) and not tower.training
    assert all(weight.requires_grad for weight in tower.trainable().parameters())


def test_only_the_vision_part_of_a_whole_checkpoint_is_read(images, tmp_path):
    torch.manual_seed(0)
    vision = Blip2VisionConfig(
        hidden_size=12, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8,
        initializer_range=0.1,
    )  # fmt: skip
    qformer = Blip2QFormerConfig(
        hidden_size=12, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, encoder_hidden_size=12
    )
    text = OPTConfig(
        vocab_size=20, hidden_size=12, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=12
    )
    whole = Blip2ForConditionalGeneration(Blip2Config(vision_config=vision, qformer_config=qformer, text_config=text))
    whole.save_pretrained(str(tmp_path))
    tower = load_vision_tower(tmp_path)
    assert tower.transform.size == 16
    pixels = ((images.float() - tower.mean_C) / tower.std_C).permute(0, 3, 1, 2)
    inner = getattr(whole, "vision_model", None) or whole.model.vision_model
    assert torch.allclose(tower(images), inner.eval()(pixels).last_hidden_state, atol=1e-5)


def test_sizes_that_disagree_and_unreadable_sources_are_refused(tmp_path):
    with pytest.raises(ArtifactError, match="32 px images, the tower reads 16 px"):
        build_vision_tower(SMALL, TransformConfig(size=32))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip_2_vision_model"}))
    with pytest.raises(ArtifactError, match="No vision tower could be read"):
        load_vision_tower(tmp_path)
