import importlib.util
import json
from pathlib import Path

import pytest
import torch
from modes import generator_mode, retriever_mode
from safetensors.torch import load_file, save_file

from cirray.core.errors import ArtifactError, DataError
from cirray.generators.config import GeneratorConfig
from cirray.generators.store import generator_from
from cirray.models.sources.blip2 import open_blip2, retriever_from
from cirray.models.text import build_tokenizer, load_tokenizer
from cirray.models.towers.hf_blip2 import load_vision_tower
from cirray.models.towers.language import load_language_model

_PATH = Path(__file__).parents[3] / "fixtures" / "small_blip2.py"
_SPEC = importlib.util.spec_from_file_location("small_blip2", _PATH)
small = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(small)

PAPER = retriever_mode("paper")


@pytest.fixture
def stage1(tmp_path):
    return small.save_retrieval(small.retrieval(), tmp_path / "stage1")


@pytest.fixture
def instruct(tmp_path):
    return small.save_instruct(small.instruct(), tmp_path / "instruct", max_shard_size="20KB")


def change(folder, edit):
    """Rewrite the weights of a folder."""
    path = Path(folder) / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_one_file_and_shards_start_the_same_retriever(tmp_path, stage1):
    sharded = small.save_retrieval(small.retrieval(), tmp_path / "shards", max_shard_size="20KB")
    assert len(list(Path(sharded).glob("*.safetensors"))) > 3
    first, second = (retriever_from(open_blip2(folder), PAPER) for folder in (stage1, sharded))
    assert first.digest == second.digest
    assert first.config.qformer.layers == 4 and first.config.embed_dim == 8 and first.patch_width == small.PATCH_WIDTH
    assert first.config.qformer.dropout == 0.1 and first.config.temperature_clamp is None


def test_only_shards_that_hold_needed_tensors_are_opened(instruct):
    source = open_blip2(instruct)
    index = json.loads((Path(instruct) / "model.safetensors.index.json").read_text())["weight_map"]
    spoken = {file for name, file in index.items() if name.startswith("language_model.model.layers")}
    needed = {index[name] for name in source.used_names()}
    unneeded = spoken - needed
    assert unneeded
    for file in unneeded:
        (Path(instruct) / file).unlink()
    retriever_from(source, PAPER)


def test_what_a_checkpoint_lacks_starts_from_the_seed(instruct):
    first, second, other = (retriever_from(open_blip2(instruct), PAPER, seed=seed) for seed in (1, 1, 2))
    assert first.digest == second.digest != other.digest
    assert torch.equal(first.qformer.query_tokens, other.qformer.query_tokens)
    assert not torch.equal(first.text_projection.weight, other.text_projection.weight)


def test_the_tower_leaves_the_affine_part_of_its_last_norm_to_the_trained_side(stage1):
    tower, retriever, model = load_vision_tower(stage1), retriever_from(open_blip2(stage1), PAPER), small.retrieval()
    tokens = tower(small.images())
    assert torch.allclose(tokens.mean(-1), torch.zeros(()), atol=1e-5)
    assert torch.equal(retriever.qformer.vision_norm.weight, model.vision_model.post_layernorm.weight)
    pixels = ((small.images().float() - tower.mean_C) / tower.std_C).permute(0, 3, 1, 2)
    whole = model.vision_model(pixels).last_hidden_state
    assert (retriever.qformer.vision_norm(tokens) - whole).abs().max() < 2e-5
    assert (tokens - whole).abs().max() > 0.1


def test_a_q_former_without_text_side_starts_a_generator_without_the_difference_pass_alone(tmp_path):
    folder = small.save_instruct(small.generation(), tmp_path / "stage2")
    source, language = open_blip2(folder), load_language_model(folder)
    generator = generator_from(source, GeneratorConfig(), language, small.PATCH_WIDTH)
    assert torch.equal(generator.projection.weight, small.generation().language_projection.weight)
    with pytest.raises(ArtifactError, match="no text side, which a retriever needs.*blip2-itm-vit-g"):
        retriever_from(source, PAPER)
    with pytest.raises(ArtifactError, match="no text side, which the difference pass needs"):
        generator_from(source, generator_mode("paper"), language, small.PATCH_WIDTH)


def test_the_language_model_inside_a_whole_checkpoint_is_read_as_it_is(instruct):
    language, model = load_language_model(instruct), small.instruct()
    assert language.width == small.LANGUAGE_WIDTH
    theirs = model.language_model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in language.model.state_dict().items())


def test_a_language_model_of_another_width_than_the_projection_is_refused_with_the_remedy(instruct, tmp_path):
    from cirray.models.towers.config import LanguageModelConfig
    from cirray.models.towers.language import build_language_model

    other = build_language_model(LanguageModelConfig(width=16, layers=1, heads=2, intermediate=16), small.speaker())
    source, paper = open_blip2(instruct), generator_mode("paper")
    with pytest.raises(ArtifactError, match="width 20; 'built' has width 16.*source_projection=false"):
        generator_from(source, paper, other, small.PATCH_WIDTH)
    made = generator_from(source, paper, other, small.PATCH_WIDTH, projection=False)
    assert made.projection.out_features == 16
    with pytest.raises(ArtifactError, match="tokens of width 24, the towers make 7"):
        generator_from(source, paper, other, 7)


def test_another_architecture_is_refused(tmp_path, stage1):
    (Path(stage1) / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ArtifactError, match="wrong architecture.*'bert'.*blip-2"):
        open_blip2(stage1)
    with pytest.raises(ArtifactError, match="No vision tower.*a 'bert' .* which reads text. Give .*BLIP-2"):
        load_vision_tower(stage1)


def test_a_truncated_file_is_refused(stage1):
    path = Path(stage1) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-500])
    for read in (lambda: retriever_from(open_blip2(stage1), PAPER), lambda: load_vision_tower(stage1)):
        with pytest.raises(ArtifactError, match="truncated|No vision tower could be read"):
            read()


def test_a_missing_tensor_and_a_wrong_shape_are_named(stage1):
    change(stage1, lambda tensors: tensors.pop("qformer.encoder.layer.1.attention.attention.key.bias"))
    with pytest.raises(ArtifactError, match="lacks 1 of the tensors.*layer.1.attention.attention.key.bias"):
        retriever_from(open_blip2(stage1), PAPER)


def test_weights_of_another_width_than_the_config_says_are_named(stage1):
    change(stage1, lambda tensors: tensors.update({"query_tokens": torch.zeros(1, 3, 17)}))
    with pytest.raises(ArtifactError, match=r"'query_tokens'.*\(1, 3, 17\), the model needs \(1, 3, 16\)"):
        retriever_from(open_blip2(stage1), PAPER)


def test_quantised_weights_are_refused_and_half_precision_ones_are_taken(stage1):
    change(stage1, lambda tensors: tensors.update({name: value.half() for name, value in tensors.items()}))
    half = retriever_from(open_blip2(stage1), PAPER)
    assert half.qformer.query_tokens.dtype == torch.float32
    assert torch.equal(half.qformer.query_tokens.half(), small.retrieval().query_tokens.half())
    change(stage1, lambda tensors: tensors.update({"query_tokens": tensors["query_tokens"].to(torch.int8)}))
    with pytest.raises(ArtifactError, match="'query_tokens'.*type int8; float64, float32.*quantised"):
        retriever_from(open_blip2(stage1), PAPER)


def test_missing_vision_weights_never_become_random_ones(stage1):
    change(stage1, lambda tensors: tensors.pop("vision_model.encoder.layers.1.mlp.fc1.weight"))
    with pytest.raises(ArtifactError, match="lacks 1 tensors of its vision tower.*fc1.weight"):
        load_vision_tower(stage1)


def test_an_image_size_that_the_position_table_cannot_take_is_refused(stage1):
    (Path(stage1) / "preprocessor_config.json").write_text(
        json.dumps({"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    with pytest.raises(ArtifactError, match="images of 16 px.*makes 32 px"):
        load_vision_tower(stage1)
    (Path(stage1) / "preprocessor_config.json").unlink()
    tower = load_vision_tower(stage1)
    with pytest.raises(DataError, match="8 x 8 px, the tower's position table is for 16 x 16"):
        tower(small.images()[:, :8, :8])


def test_a_tokenizer_without_a_pad_token_is_refused(stage1, tmp_path):
    tokenizer = small.reader()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(str(tmp_path / "words"))
    with pytest.raises(ArtifactError, match="no pad token.*pad_token in its tokenizer_config.json"):
        load_tokenizer(tmp_path / "words")


def test_a_tokenizer_of_another_vocabulary_is_refused(stage1):
    other = build_tokenizer(["three words only"])
    with pytest.raises(ArtifactError, match="tokenizer has 7 tokens, the word table"):
        retriever_from(open_blip2(stage1), PAPER, other)


@pytest.mark.parametrize("place", ["nowhere", "./nowhere/at/all"])
def test_what_is_neither_a_folder_nor_on_the_hub_says_which_files_belong_where(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match="is no folder. Put config.json, model.safetensors"):
        open_blip2(place)


def test_a_hub_id_without_network_says_which_files_belong_where(monkeypatch):
    from huggingface_hub import errors

    def offline(*names, **options):
        raise errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(ArtifactError, match="the hub does not answer. Put config.json, model.safetensors"):
        open_blip2("Salesforce/blip2-itm-vit-g")


def test_the_matching_head_starts_as_the_checkpoints_and_a_fixed_one_needs_it(stage1, instruct):
    source = open_blip2(stage1)
    for matching, trained in (("trained", True), ("frozen", False)):
        head = retriever_from(source, PAPER.model_copy(update={"matching": matching})).matching_head.classifier
        stored = source.weights.read(["itm_head.weight", "itm_head.bias"])
        assert torch.equal(head.weight, stored["itm_head.weight"]) and torch.equal(head.bias, stored["itm_head.bias"])
        assert head.weight.requires_grad == trained
    assert retriever_from(source, PAPER).matching_head is None
    other = open_blip2(instruct)
    assert retriever_from(other, PAPER.model_copy(update={"matching": "trained"})).matching_head is not None
    with pytest.raises(ArtifactError, match="no matching head .itm_head. to hold fixed"):
        retriever_from(other, PAPER.model_copy(update={"matching": "frozen"}))


def test_a_projection_without_bias_does_not_take_over_one_with_a_bias(instruct):
    source, language = open_blip2(instruct), load_language_model(instruct)
    config = GeneratorConfig(projection_bias=False)
    with pytest.raises(ArtifactError, match="source_projection=false"):
        generator_from(source, config, language, small.PATCH_WIDTH)
    assert generator_from(source, config, language, small.PATCH_WIDTH, projection=False).projection.bias is None
