import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cirray.core.errors import ArtifactError, ConfigError, DataError
from cirray.models.batch import RetrievalBatch, Wanted
from cirray.models.config import DualEncoderConfig
from cirray.models.dual import build_dual
from cirray.models.fusion.config import DUAL_HEADS, SlerpConfig, TirgConfig
from cirray.models.retriever_files import load_retriever
from cirray.models.towers.backbones import BACKBONES
from cirray.models.towers.hf_blip2 import load_vision_tower

small = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "small_clip.py")))
TEXTS = ["paint the red circle blue", "remove it", "move the small square"]
HEADS = ("combiner", "cross_attention", "image", "slerp", "sum", "text", "tirg")


def tiny(fusion="sum", **fields):
    text = {"width": 16, "layers": 1, "heads": 2, "intermediate": 16}
    config = DualEncoderConfig(fusion=fusion, embed_dim=8, text=text, image_projection=True, **fields)
    return build_dual(config, TEXTS, patch_width=6, seed=3).eval()


@pytest.fixture
def patches():
    return torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))


def batch_of(retriever, patches):
    keys = torch.arange(3)
    return RetrievalBatch(patches, patches.flip(0), retriever.tokenize(TEXTS), keys, keys + 3, torch.ones(3))


def test_the_heads_and_backbones_are_these():
    assert set(DUAL_HEADS) == {*HEADS, "joint"}
    reading = [name for name in BACKBONES if BACKBONES.get(name).reads_text]
    assert reading == ["hf_clip", "hf_naflex", "hf_siglip", "open_clip", "sentence_transformers"]
    with pytest.raises(ConfigError, match="Did you mean 'hf_clip'"):
        BACKBONES.get("hf_clp")
    with pytest.raises(ValueError, match="Unknown dual-encoder fusion 'add'.*combiner"):
        tiny("add")
    with pytest.raises(ConfigError, match="'joint' needs a model that reads picture and text together"):
        tiny("joint")


@pytest.mark.parametrize("fusion", HEADS)
def test_outputs_have_norm_one_and_the_shapes_of_the_protocol(fusion, patches):
    retriever = tiny(fusion)
    output = retriever(batch_of(retriever, patches), Wanted(references=True, text_only=True))
    assert output.query_BD.shape == (3, 8) and output.target_BQD.shape == output.reference_BQD.shape == (3, 1, 8)
    for vectors in (output.query_BD, output.target_BQD, output.reference_BQD, output.text_query_BD):
        assert torch.allclose(vectors.norm(dim=-1), torch.ones(()), atol=1e-5)
    query = retriever.compose(retriever.encode_reference(patches), retriever.tokenize(TEXTS))
    assert torch.equal(query, output.query_BD)
    assert retriever.score(query, output.target_BQD).shape == (3, 3)


@pytest.mark.parametrize("fusion", HEADS)
def test_a_dual_encoder_comes_back_with_its_vectors_and_digest(fusion, patches, tmp_path):
    retriever = tiny(fusion)
    retriever.save(tmp_path)
    again = load_retriever(tmp_path)
    assert again.digest == retriever.digest
    text = retriever.tokenize(TEXTS)
    assert torch.equal(again.compose(again.encode_reference(patches), again.tokenize(TEXTS)), retriever.compose(
        retriever.encode_reference(patches), text))  # fmt: skip
    with torch.no_grad():
        next(again.text_encoder.parameters()).add_(1)
    assert again.digest != retriever.digest


@pytest.mark.parametrize("make", ["hf", "open"])
def test_towers_and_text_encoders_of_both_libraries_come_back(make, tmp_path):
    model = getattr(small, f"{make}_model")()
    folder = getattr(small, f"save_{make}")(model, tmp_path / "source")
    tower = load_vision_tower(folder)
    assert tower.transform.mode == "center_crop" and tower.transform.mean == (0.5, 0.4, 0.3)
    for name, chosen in (("one", tower), ("all", tower.with_tokens("all"))):
        chosen.save(tmp_path / name)
        again = load_vision_tower(tmp_path / name)
        assert again.digest == chosen.digest and torch.equal(again(small.images()), chosen(small.images()))
    retriever = build_dual(DualEncoderConfig(source=folder, fusion="combiner"), [], small.EMBED)
    retriever.save(tmp_path / "retriever")
    again = load_retriever(tmp_path / "retriever")
    assert again.digest == retriever.digest and again.config.source == "" and again.config.embed_dim == small.EMBED


def test_a_trained_temperature_stays_in_its_range_and_a_fixed_one_is_taken_as_given():
    learned, free = (tiny("sum", learn_temperature=True, temperature_clamp=clamp) for clamp in ((0.01, 0.1), None))
    for retriever, seen in ((learned, 0.01), (free, -0.001)):
        with torch.no_grad():
            retriever.raw_temperature.fill_(-0.001)
        assert retriever.temperature.item() == pytest.approx(seen)
    (1 / learned.temperature).backward()
    assert learned.raw_temperature.grad.item() != 0, "a descent step leads back into the range"
    assert tiny("sum", temperature=0.005).temperature.item() == pytest.approx(0.005)


def test_a_combiner_is_put_over_the_tuned_encoders_of_a_checkpoint(patches):
    tuned = tiny("sum", learn_temperature=True)
    with torch.no_grad():
        for weight in tuned.text_encoder.parameters():
            weight.add_(0.01)
        tuned.raw_temperature.fill_(0.03)
    made = tuned.changed({"fusion": "combiner", "train_text": False})
    assert made.config.fusion.kind == "combiner" and made.temperature.item() == pytest.approx(0.03)
    assert torch.equal(made.encode_gallery(patches), tuned.encode_gallery(patches))
    assert {name.split(".")[0] for name, item in made.named_parameters() if item.requires_grad} >= {"head"}
    assert not any(item.requires_grad for item in made.text_encoder.parameters())
    trained = made.changed({"fusion": {"settings": {"dropout": 0.1}}})
    assert all(torch.equal(a, b) for a, b in zip(trained.head.parameters(), made.head.parameters(), strict=True))
    with pytest.raises(ConfigError, match="encoder.settings.pooling cannot be changed"):
        tuned.changed({"pooling": "mean"})


def test_a_frozen_text_encoder_gets_no_gradient_and_the_temperature_only_where_asked(patches):
    frozen, learned = tiny("combiner", train_text=False), tiny("combiner", learn_temperature=True)
    for retriever, text_moves in ((frozen, False), (learned, True)):
        output = retriever.train()(batch_of(retriever, patches))
        (retriever.score(output.query_BD, output.target_BQD).diagonal().sum() / output.temperature).backward()
        moved = [weight.grad is not None for weight in retriever.text_encoder.parameters()]
        assert any(moved) == text_moves and retriever.head.mix.weight.grad is not None
        assert (retriever.raw_temperature.grad is not None) == text_moves
    assert not frozen.text_encoder.training


def test_cross_attention_starts_as_the_sum_and_reads_tokens_after_a_step(patches):
    crossed, summed = tiny("cross_attention"), tiny("sum")
    crossed.text_encoder, crossed.image_projection = summed.text_encoder, summed.image_projection
    text = summed.tokenize(TEXTS)
    state = summed.encode_reference(patches)
    assert torch.allclose(crossed.compose(state, text), summed.compose(state, text), atol=1e-6)
    torch.nn.init.normal_(crossed.head.out.weight)
    others = torch.cat([state[:, :1], state[:, 1:].flip(0)], dim=1)
    assert not torch.allclose(crossed.compose(state, text), crossed.compose(others, text), atol=1e-4)


def test_a_combiner_gate_lies_between_zero_and_one(patches):
    retriever = tiny("combiner")
    mixed, share = retriever.head.parts(torch.randn(50, 8) * 5, torch.randn(50, 8) * 5)
    assert mixed.shape == (50, 8) and bool(((share > 0) & (share < 1)).all())


def test_a_combiner_that_adds_nothing_with_its_gate_half_open_is_the_normalised_sum(patches):
    combined, summed = tiny("combiner"), tiny("sum")
    combined.text_encoder, combined.image_projection = summed.text_encoder, summed.image_projection
    text, state = summed.tokenize(TEXTS), summed.encode_reference(patches)
    assert not torch.allclose(combined.compose(state, text), summed.compose(state, text), atol=1e-3)
    with torch.no_grad():
        for layer in (combined.head.mix, combined.head.gate):
            layer.weight.zero_()
            layer.bias.zero_()
    assert torch.allclose(combined.compose(state, text), summed.compose(state, text), atol=1e-6)
    with torch.no_grad():
        combined.head.gate.bias.fill_(2.0)
    assert not torch.allclose(combined.compose(state, text), summed.compose(state, text), atol=1e-3)


def test_what_does_not_fit_is_refused_in_words(patches, tmp_path):
    with pytest.raises(ConfigError, match="tokens have width 6, the texts' vectors 8.*image_projection"):
        build_dual(DualEncoderConfig(embed_dim=8), TEXTS, patch_width=6)
    with pytest.raises(ConfigError, match="is no encoder of images and texts"):
        build_dual(DualEncoderConfig(source=str(tmp_path)), TEXTS, patch_width=6)
    retriever = tiny()
    with pytest.raises(ConfigError, match="needs prototypes.*training.terms."):
        retriever(batch_of(retriever, patches), Wanted(reverse=True))
    with pytest.raises(DataError, match="no text"):
        retriever.tokenize([])


def test_a_blank_text_of_a_benchmark_passes_through():
    retriever = tiny()
    assert len(retriever.tokenize(["red", " "])) == 2


def test_open_clip_sources_that_do_not_fit_are_refused_in_words(tmp_path):
    folder = Path(small.save_open(small.open_model(), tmp_path / "model"))
    with pytest.raises(ArtifactError, match="Unknown open_clip architecture 'ViT-L-15'"):
        load_vision_tower("open_clip:ViT-L-15=x")
    with pytest.raises(ArtifactError, match="names no file of weights"):
        load_vision_tower("open_clip:ViT-B-32=nowhere.safetensors")
    wide = json.loads((folder / "open_clip_config.json").read_text())
    wide["model_cfg"]["vision_cfg"]["layers"] = 3
    (folder / "open_clip_config.json").write_text(json.dumps(wide))
    with pytest.raises(ArtifactError, match="do not fit its architecture: missing visual.transformer.resblocks.2"):
        load_vision_tower(folder)
    resnet = small.save_open(small.open_model(small.RESNET), tmp_path / "resnet", small.RESNET)
    with pytest.raises(ConfigError, match="needs a plain ViT.*ModifiedResNet"):
        load_vision_tower(resnet).with_tokens("all")


def test_tirg_without_its_residual_and_with_an_open_gate_is_the_scaled_image():
    head, image, text = DUAL_HEADS.get("tirg")(TirgConfig(), 6), torch.randn(4, 6), torch.randn(4, 6)
    with torch.no_grad():
        head.weights[1] = 0.0
        head.gate[-1].weight.zero_()
        head.gate[-1].bias.fill_(50.0)
        assert torch.allclose(head(image, image[:, None], text), 4 * image, atol=1e-5)
        head.gate[-1].bias.fill_(-50.0)
        assert torch.allclose(head(image, image[:, None], text), torch.zeros(4, 6), atol=1e-5)
        head.weights[1] = 10.0
        assert not torch.allclose(head(image, image[:, None], text), torch.zeros(4, 6), atol=1e-2)


def test_tirg_with_batch_norm_makes_a_query_depend_on_its_batch_and_layer_norm_does_not():
    image, text = torch.randn(4, 6), torch.randn(4, 6)
    for norm, depends in (("batch", True), ("layer", False)):
        head = DUAL_HEADS.get("tirg")(TirgConfig(norm=norm), 6)
        alone, among = head(image[:2], image[:2, None], text[:2]), head(image, image[:, None], text)[:2]
        assert torch.allclose(alone, among, atol=1e-5) is not depends


def test_slerp_keeps_norm_one_and_the_share_of_the_angle():
    image, text = torch.tensor([[2.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 3.0], [5.0, 0.0]])
    for share in (0.0, 0.25, 1.0):
        query = DUAL_HEADS.get("slerp")(SlerpConfig(text_share=share), 2)(image, image[:, None], text)
        assert torch.allclose(query.norm(dim=-1), torch.ones(2), atol=1e-4)
        assert float(torch.atan2(query[0, 1], query[0, 0])) == pytest.approx(share * torch.pi / 2, abs=1e-3)
        assert torch.allclose(query[1], torch.tensor([1.0, 0.0]), atol=1e-4)


def test_the_heads_of_one_side_ignore_the_other(patches):
    for fusion, other in (("text", "image"), ("image", "text")):
        retriever = tiny(fusion)
        first = retriever.compose(retriever.encode_reference(patches), retriever.tokenize(TEXTS))
        swapped_image = retriever.compose(retriever.encode_reference(patches.flip(0)), retriever.tokenize(TEXTS))
        swapped_text = retriever.compose(retriever.encode_reference(patches), retriever.tokenize(TEXTS[::-1]))
        same, moved = (swapped_image, swapped_text) if other == "image" else (swapped_text, swapped_image)
        assert torch.equal(first, same) and not torch.allclose(first, moved, atol=1e-3)


def test_sizes_of_a_text_encoder_beside_a_source_that_brings_its_own_are_refused():
    assert DualEncoderConfig(source="clip").text == DualEncoderConfig().text
    with pytest.raises(ValueError, match="text says the sizes of an encoder from scratch, but source brings its own"):
        DualEncoderConfig(source="clip", text={"layers": 3})
