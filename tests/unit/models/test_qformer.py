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


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layers", [1, 2])
def test_what_is_not_read_is_not_computed_and_changes_neither_outputs_nor_gradients(
    tokenizer, patches, attention, layers
):
    config = QFormerConfig(
        width=16, layers=layers, heads=2, queries=3, intermediate=32, initializer_range=0.2, attention=attention
    )
    module = QueryingTransformer(config, 6, len(tokenizer))
    text = encode_texts(tokenizer, ["paint it red", "it", "remove the square"], 12)
    tokens, seen, rows = module.embed_text(text), module.vision_norm(patches), module.query_tokens.expand(3, -1, -1)
    mask = torch.cat([text.mask_BT.new_ones(3, 3), text.mask_BT], dim=1)
    whole = [
        {"query_embeds": rows, "query_length": 3, "encoder_hidden_states": seen},
        {"query_embeds": torch.cat([rows, tokens], dim=1), "query_length": 3, "encoder_hidden_states": seen,
         "attention_mask": mask},
        {"query_embeds": tokens, "query_length": 0, "attention_mask": text.mask_BT},
    ]  # fmt: skip
    read = [module.image(patches), module.image(patches, text), module.text_only(tokens, text.mask_BT, read=3)]
    for found, arguments in zip(read, whole, strict=True):
        wanted = module.qformer(**arguments).last_hidden_state[:, :3]
        assert torch.allclose(found, wanted, atol=1e-6)
        for one, other in zip(gradients(module, found), gradients(module, wanted), strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def gradients(module, output):
    """Of a sum that layer norms do not hold constant."""
    weights, mixed = list(module.parameters()), output * torch.linspace(-1, 1, output.numel()).view(output.shape)
    return torch.autograd.grad(mixed.sum(), weights, retain_graph=True, materialize_grads=True)


def test_the_last_layer_works_for_what_is_read_and_the_first_for_one_row_of_queries(small, tokenizer, patches):
    text, rows = encode_texts(tokenizer, ["paint it red"] * 3, 12), []
    for place in (0, -1):
        module = small.qformer.encoder.layer[place].attention.attention.query
        module.register_forward_hook(lambda module, given, made: rows.append(tuple(given[0].shape[:2])))
    tokens = small.queries + text.ids_BT.shape[1]
    small.image(patches)
    small.image(patches, text)
    small.text_only(small.embed_text(text), text.mask_BT, read=1)
    assert rows == [(1, 3), (3, 3), (3, tokens), (3, 3), (3, tokens - 3), (3, 1)]
