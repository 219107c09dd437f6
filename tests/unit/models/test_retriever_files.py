import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from cirray.core.config import Config
from cirray.core.errors import ArtifactError, ConfigError
from cirray.models.config import DualEncoderConfig, QFormerConfig
from cirray.models.description import retriever_digest
from cirray.models.dual import build_dual
from cirray.models.forked import fork
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


def even(retriever):
    """The same with all weights alike, so that a digest depends on no library's random numbers."""
    with torch.no_grad():
        for tensor in retriever.state_dict().values():
            if tensor.is_floating_point():
                tensor.fill_(0.25)
    return retriever


def test_digests_of_composed_and_dual_encoders_are_those_of_checkpoints_made_before(make, texts):
    """A change of one of these values breaks every index there is. (A fork's own digest may change: indexes name the
    digest of its target side, which is the forked retriever's.)"""
    text = {"width": 16, "layers": 1, "heads": 2, "intermediate": 16}
    dual = build_dual(DualEncoderConfig(embed_dim=8, text=text, image_projection=True), texts, patch_width=6)
    plain = even(make())
    assert plain.digest == "b4f221901c57b3862ddd406d650b5a7f"
    unprocessed = even(make("released_compat", text_processor="none"))
    assert unprocessed.digest == "0e10f4a37c77983305f247a0b3c6672b" != even(make("released_compat")).digest
    assert even(dual).digest == "546e986e829466691a98de19b73bab01"
    assert fork(plain).target_digest == fork(plain).index_digests[0] == plain.digest != fork(plain).digest


class Demanding(Config):
    """A plug-in's: one field has no default."""

    embed_dim: int
    rate: float = 1
    inner: QFormerConfig = QFormerConfig(width=16, heads=2)


def described(description, **fields):
    return SimpleNamespace(
        kind="toy", patch_width=4, config=Demanding(embed_dim=8, **fields), description=lambda: description,
        vocabulary=dict, state_dict=dict,
    )  # fmt: skip


def test_fields_with_their_default_stay_out_of_a_digest_also_of_a_forks_inner_one_and_where_some_are_required():
    full, usual = Demanding(embed_dim=8).to_dict(), {"embed_dim": 8}
    other = Demanding(embed_dim=8, inner={"queries": 3}).to_dict()
    for place in (lambda tree: {"retriever": tree}, lambda tree: {"query": {"retriever": tree}, "retriever": {}}):
        digests = [retriever_digest(described(place(tree))) for tree in (full, usual, other, {"embed_dim": 9})]
        assert digests[0] == digests[1] and len(set(digests)) == 3


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
    with pytest.raises(ArtifactError, match="is a truncated safetensors file"):
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
