import json
from types import SimpleNamespace
from typing import Annotated

import pytest
import torch
from safetensors.torch import load_file

from cirray.core.config import Config
from cirray.core.errors import ArtifactError, ConfigError
from cirray.core.fields import Effort, Place, Since
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
    for one, other in (
        (model, again),
        (model.changed({"fusion": "text_only"}), again.changed({"fusion": "text_only"})),
    ):
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
    assert plain.digest == "dfefec1935a15bf5aa35c3d582811828"
    unprocessed = even(make("released_compat", text_processor="none"))
    assert unprocessed.digest == "0d265e5acde0942aa1f1ad37ab30363c" != even(make("released_compat")).digest
    assert even(dual).digest == "1de3bb8eadfa9d6d2807e593bc5c6837"
    assert fork(plain).target_digest == fork(plain).index_digests[0] == plain.digest != fork(plain).digest


class Declared(Config):
    """A plug-in's: one field has no default, one is an effort, one a place, one came later."""

    embed_dim: int
    source: Place = ""
    blocks: Effort[int] = 4
    slope: Annotated[float, Since("0.2")] = 1.0
    inner: QFormerConfig = QFormerConfig(width=16, heads=2)


class Earlier(Config):
    """The same before `slope` came."""

    embed_dim: int
    inner: QFormerConfig = QFormerConfig(width=16, heads=2)


def digest_of(config, forked):
    description = {"kind": "half", "retriever": config.to_dict()}
    return retriever_digest(SimpleNamespace(
        kind="toy", patch_width=4, config=config, vocabulary=dict, state_dict=dict,
        description=lambda: {"query": description, "retriever": {}} if forked else description,
    ))  # fmt: skip


@pytest.mark.parametrize("forked", [False, True])
def test_a_digest_counts_the_fields_that_decide_and_no_place_effort_or_later_default(forked):
    usual = digest_of(Declared(embed_dim=8), forked)
    assert (
        usual
        == digest_of(Declared(embed_dim=8, source="x", blocks=9), forked)
        == digest_of(Earlier(embed_dim=8), forked)
    )
    others = [Declared(embed_dim=9), Declared(embed_dim=8, slope=2.0), Declared(embed_dim=8, inner={"queries": 3})]
    assert len({usual, *(digest_of(config, forked) for config in others)}) == 4


def test_a_network_that_saves_memory_while_it_trains_is_the_same_network(make):
    assert even(make()).digest == even(make(gradient_checkpointing=True)).digest


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
