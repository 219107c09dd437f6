import pytest
import torch

from cirray.models.text import encode_texts


def compose(model, patches, texts, pad=None):
    text = encode_texts(model.tokenizer, texts, model.config.text_length, pad)
    return model.compose(model.encode_reference(patches), text)


def test_queries_and_gallery_tokens_have_norm_one(make, patches, texts):
    model = make()
    query, gallery = compose(model, patches, texts), model.encode_gallery(patches)
    assert query.shape == (3, 8) and gallery.shape == (3, 3, 8)
    assert torch.allclose(query.norm(dim=-1), torch.ones(3)) and torch.allclose(gallery.norm(dim=-1), torch.ones(3, 3))


def test_half_precision_patches_are_taken(make, patches, texts):
    model = make()
    assert torch.allclose(compose(model, patches.half(), texts), compose(model, patches, texts), atol=1e-2)


def test_the_query_depends_on_image_and_text(make, patches, texts):
    model = make()
    query = compose(model, patches, texts)
    assert not torch.allclose(query, compose(model, patches.flip(0), texts), atol=1e-3)
    assert not torch.allclose(query, compose(model, patches, texts[::-1]), atol=1e-3)


def test_padding_length_does_not_change_the_improved_query(make, patches, texts):
    model = make().train()
    assert torch.allclose(compose(model, patches, texts), compose(model, patches, texts, pad=12), atol=1e-5)


def test_in_training_the_paper_mode_reads_the_padding_of_the_full_length_too(make, patches, texts):
    model = make("paper").train()
    tight, loose = compose(model, patches, texts), compose(model, patches, texts, pad=12)
    assert torch.allclose(tight, loose, atol=1e-5)
    before = compose(model.eval(), patches, texts)
    with torch.no_grad():
        model.qformer.embeddings.word_embeddings.weight[model.tokenizer.pad_token_id, ::2] += 3
    assert torch.allclose(compose(model, patches, texts), before, atol=1e-5)
    assert not torch.allclose(compose(model.train(), patches, texts), tight, atol=1e-3)


def test_training_and_inference_readout_agree_in_improved_mode(make, patches, texts):
    model = make()
    assert torch.allclose(compose(model.train(), patches, texts), compose(model.eval(), patches, texts), atol=1e-6)


def test_training_and_inference_readout_differ_under_released_compat(make, patches, texts):
    model = make("released_compat")
    trained, inferred = (compose(m, patches, texts, 12) for m in (model.train(), make("released_compat").eval()))
    assert not torch.allclose(trained, inferred, atol=1e-3)
    paper = make("paper")
    assert torch.allclose(compose(paper.train(), patches, texts, 12), trained, atol=1e-6)
    assert not torch.allclose(compose(paper.eval(), patches, texts, 12), inferred, atol=1e-3)


def test_a_readout_position_is_the_cls_after_the_queries(make, patches, texts):
    model = make("released_compat")
    text = model.tokenize(texts)
    tokens = torch.cat([model.prototypes(patches, text), model.qformer.embed_text(text)], dim=1)
    mask = torch.cat([torch.ones(3, 3, dtype=torch.int64), text.mask_BT], dim=1)
    hidden = model.qformer.text_only(tokens, mask)
    assert torch.allclose(model.compose(patches, text), model.project_text(hidden[:, 3]), atol=1e-6)


def test_single_modality_heads_ignore_the_other_side(make, patches, texts):
    image, text = make(fusion="image_only"), make(fusion="text_only")
    assert torch.equal(compose(image, patches, texts), compose(image, patches, texts[::-1]))
    assert not torch.allclose(compose(image, patches, texts), compose(image, patches.flip(0), texts), atol=1e-3)
    assert torch.equal(compose(text, patches, texts), compose(text, patches.flip(0), texts))
    assert not torch.allclose(compose(text, patches, texts), compose(text, patches, texts[::-1]), atol=1e-3)


def test_another_head_has_the_same_weights_and_leaves_the_model_alone(make, patches, texts):
    model = make()
    twin = model.changed({"fusion": "image_only"})
    assert (model.config.fusion.kind, twin.config.fusion.kind) == ("two_pass", "image_only")
    assert torch.equal(compose(twin, patches, texts), compose(make(fusion="image_only"), patches, texts))
    assert not torch.allclose(compose(model, patches, texts), compose(twin, patches, texts), atol=1e-3)


def test_an_unknown_head_answers_with_the_known_ones(make):
    with pytest.raises(ValueError, match="two_pass"):
        make(fusion="two_passes")


def test_the_text_branch_puts_the_prompts_between_cls_and_the_words(make, texts):
    model = make()
    text = model.tokenize(["paint it red"])
    words = model.qformer.embed_words(text.ids_BT)[0]
    rows = torch.cat([words[:1], model.prompts, words[1:]])
    positions = model.qformer.embeddings.position_embeddings.weight[: len(rows)]
    hidden = model.qformer.text_only((rows + positions)[None])
    assert torch.allclose(model.encode_text(text), model.project_text(hidden[:, 0]), atol=1e-6)


def test_the_dot_similarity_has_one_token_per_image(make, patches):
    model = make(similarity="dot")
    assert model.encode_gallery(patches).shape == (3, 1, 8)


def test_the_start_weights_follow_the_seed_and_leave_the_global_generator_alone(make):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    assert make(seed=1).digest == make(seed=1).digest != make(seed=2).digest
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_temperature_is_clamped_in_improved_mode_and_free_in_paper_mode(make):
    improved, paper = make(), make("paper")
    for model in (improved, paper):
        model.raw_temperature.data.fill_(5.0)
    assert improved.temperature.item() == pytest.approx(0.1) and paper.temperature.item() == 5.0


def test_a_temperature_outside_its_range_can_come_back(make):
    model = make()
    model.raw_temperature.data.fill_(5.0)
    inward, outward = (torch.autograd.grad(sign * model.temperature, model.raw_temperature)[0] for sign in (1, -1))
    assert float(inward) == 1.0 and float(outward) == 0.0
