import pytest
import torch

from cirray.models.config import QFormerConfig
from cirray.models.qformer import QueryingTransformer
from cirray.models.text import encode_texts


@pytest.fixture
def small(tokenizer):
    torch.manual_seed(0)
    config = QFormerConfig(width=16, layers=2, heads=2, queries=3, intermediate=32, initializer_range=0.2)
    return QueryingTransformer(config, 6, len(tokenizer)).eval()


def scramble(module, part):
    """Change every weight whose name holds `part`; returns how many there were."""
    names = [name for name, _ in module.named_parameters() if part in name]
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if part in name:
                weight.add_(torch.randn_like(weight))
    return len(names)


def test_the_text_only_pass_uses_the_text_feed_forward_alone(small, tokenizer):
    text = encode_texts(tokenizer, ["paint it red"], 12)
    before = small.text_only(small.embed_text(text), text.mask_BT)
    assert scramble(small, "intermediate_query") and scramble(small, "output_query") and scramble(small, "crossatt")
    assert torch.equal(small.text_only(small.embed_text(text), text.mask_BT), before)
    assert scramble(small, ".intermediate.")
    assert not torch.allclose(small.text_only(small.embed_text(text), text.mask_BT), before, atol=1e-3)


def test_the_image_pass_without_text_ignores_the_text_feed_forward_and_uses_the_query_one(small, patches):
    before = small.image(patches)
    assert scramble(small, ".intermediate.")
    assert torch.equal(small.image(patches), before)
    assert scramble(small, "intermediate_query")
    assert not torch.allclose(small.image(patches), before, atol=1e-3)


def test_queries_see_the_text_and_the_patches(small, tokenizer, patches):
    one, other = (encode_texts(tokenizer, [text] * 3, 12) for text in ("paint it red", "remove the square"))
    assert not torch.allclose(small.image(patches, one), small.image(patches, other), atol=1e-3)
    assert not torch.allclose(small.image(patches, one), small.image(patches.flip(0), one), atol=1e-3)


def test_the_image_pass_is_symmetric_in_concatenated_patches(small, patches):
    pair = torch.cat([patches, patches.flip(0)], dim=1)
    swapped = torch.cat([patches.flip(0), patches], dim=1)
    assert torch.allclose(small.image(pair), small.image(swapped), atol=1e-5)


def test_padding_does_not_reach_the_queries(small, tokenizer, patches):
    tight, loose = (encode_texts(tokenizer, ["paint it red"] * 3, 12, pad) for pad in (None, 12))
    assert torch.allclose(small.image(patches, tight), small.image(patches, loose), atol=1e-6)


def test_text_outputs_come_back_on_request(small, tokenizer, patches):
    text = encode_texts(tokenizer, ["paint it red"] * 3, 12)
    both = small.image_and_text(patches, text)
    assert both.queries_BQD.shape == (3, 3, 16) and both.text_BTD.shape == (3, text.ids_BT.shape[1], 16)
    assert small.image_and_text(patches).text_BTD is None


def test_a_qformer_without_vocabulary_takes_no_text(tokenizer, patches):
    module = QueryingTransformer(QFormerConfig(width=16, heads=2, queries=3, intermediate=32), 6)
    assert module.image(patches).shape == (3, 3, 16)
    assert not [name for name, _ in module.named_parameters() if ".intermediate." in name or "embeddings" in name]
    with pytest.raises(ValueError, match="vocabulary"):
        module.image(patches, encode_texts(tokenizer, ["it"] * 3, 12))


def test_checkpointing_changes_memory_only(small, patches):
    plain = torch.autograd.grad(small.train().image(patches).square().sum(), small.query_tokens)[0]
    small.enable_checkpointing()
    again = torch.autograd.grad(small.image(patches).square().sum(), small.query_tokens)[0]
    assert torch.allclose(plain, again, atol=1e-5)
    assert any(getattr(module, "gradient_checkpointing", False) for module in small.modules())
