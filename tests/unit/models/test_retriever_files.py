import json

import pytest
import torch
from safetensors.torch import load_file

from cirray.core.errors import ArtifactError, ConfigError
from cirray.models.retriever_files import load_retriever


def test_a_saved_retriever_gives_the_same_vectors_and_digest(make, patches, texts, tmp_path):
    model = make("released_compat")
    model.save(tmp_path / "model")
    again = load_retriever(tmp_path / "model")
    assert again.digest == model.digest and again.config == model.config and not again.training
    for one, other in ((model, again), (model.with_fusion("text_only"), again.with_fusion("text_only"))):
        assert torch.equal(one.compose(patches, one.tokenize(texts)), other.compose(patches, other.tokenize(texts)))
    assert torch.equal(model.encode_gallery(patches), again.encode_gallery(patches))


def test_the_digest_sees_one_changed_weight_and_another_readout(make):
    model = make()
    before = model.digest
    assert before != make("released_compat").digest
    model.prompts.data[0, 0] += 1e-3
    assert model.digest != before


def test_weights_are_plain_safetensors(make, tmp_path):
    model = make()
    model.save(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict())


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_one_sentence(make, tmp_path, name):
    make().save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ArtifactError):
        load_retriever(tmp_path)


def test_a_truncated_weight_file_is_refused(make, tmp_path):
    make().save(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="no readable retriever"):
        load_retriever(tmp_path)


def test_weights_of_another_size_are_refused(make, tmp_path):
    make().save(tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    description["retriever"]["embed_dim"] = 9
    (tmp_path / "config.json").write_text(json.dumps(description))
    with pytest.raises(ArtifactError, match="do not fit"):
        load_retriever(tmp_path)


def test_an_unknown_field_in_the_config_is_named(make, tmp_path):
    make().save(tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    description["retriever"]["readouts"] = "cls"
    (tmp_path / "config.json").write_text(json.dumps(description))
    with pytest.raises(ConfigError, match="readouts"):
        load_retriever(tmp_path)
