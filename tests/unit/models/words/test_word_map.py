import copy

import pytest
import torch

from cirray.core.errors import ConfigError
from cirray.models.batch import RetrievalBatch, Wanted
from cirray.models.retriever_files import load_retriever
from cirray.models.words.adapters import Bottleneck
from cirray.models.words.config import InjectionConfig, PhiConfig
from cirray.models.words.injection import Injection
from cirray.models.words.phi import Phi
from cirray.models.words.word_map import PLAIN

TEXTS = ["paint it blue", "remove the red circle", ""]
BACKBONES = ("hf_clip", "open_clip")


def query(retriever, patches, texts=TEXTS):
    return retriever.compose(retriever.encode_reference(patches), retriever.tokenize(texts))


def batch_of(retriever, patches):
    keys = torch.arange(3)
    return RetrievalBatch(patches, patches.flip(0), retriever.tokenize(TEXTS), keys, keys + 3, torch.ones(3))


def count(module):
    return sum(weight.numel() for weight in module.parameters())


def test_sizes_at_full_size_are_those_of_the_papers():
    with torch.device("meta"):
        bottleneck = Bottleneck(768, 64)
        injection = Injection(InjectionConfig(), 1024, 768)
    assert count(bottleneck) * 24 == 2_379_264
    assert count(Phi(PhiConfig(), 768, 768, 1, 0.4)) == 14_162_688
    assert round(count(injection) / 1e6, 1) == 15.0


def test_an_injection_with_closed_gates_is_phi_bit_for_bit_and_gates_move_in_a_step(make, patches):
    retriever, bare = make(), make(injection={"layers": 0})
    bare.phi.load_state_dict(retriever.phi.state_dict())
    assert torch.equal(retriever.encode_reference(patches), bare.encode_reference(patches))
    retriever.train_mapping()
    optimizer = torch.optim.SGD([item for item in retriever.parameters() if item.requires_grad], lr=1.0)
    retriever.pseudo_sentences(retriever.encode_reference(patches)).sum().backward()
    optimizer.step()
    gates = [weight for name, weight in retriever.injection.named_parameters() if name.endswith("gate")]
    assert len(gates) == 4 and all(bool(gate != 0) for gate in gates)


@pytest.mark.parametrize("tuning", ["adapter", "lora"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_adapters_at_their_start_leave_every_embedding_as_it_was(make, patches, backbone, tuning):
    bare, plugged = make(backbone, tuning="none"), make(backbone, tuning=tuning)
    assert torch.equal(query(bare, patches), query(plugged, patches))
    with torch.no_grad():
        for name, weight in plugged.adapters.named_parameters():
            weight.normal_(std=0.5) if ".up." in name or name.startswith("up") else None
    assert not torch.allclose(query(bare, patches), query(plugged, patches), atol=1e-3)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_token_lands_in_the_slot_and_nowhere_else(make, patches, backbone):
    retriever, seen = make(backbone), []
    table = retriever._sockets.table
    table.register_forward_hook(lambda module, given, output: seen.append((given[0], output)))
    text, state = retriever.tokenize(TEXTS), retriever.encode_reference(patches)
    retriever.compose(state, text)
    ids, given = seen[-1]
    assert torch.equal(given[text.slot_BT], state[:, 0])
    assert torch.equal(given[~text.slot_BT], table.weight[ids][~text.slot_BT])
    plain = retriever.text_encoder.tokenize(["red circle"], 12)
    before = retriever.text_encoder(plain)
    retriever.compose(state, text)
    assert torch.equal(retriever.text_encoder(plain), before)


def test_another_token_makes_another_query_and_every_token_of_several_counts(make, patches):
    one, three = make(), make(tokens=3)
    assert not torch.allclose(query(one, patches), query(one, patches.flip(0)), atol=1e-3)
    state = three.encode_reference(patches)
    assert state.shape[1] == 3
    for number in range(3):
        other = state.clone()
        other[:, number] *= -3
        text = three.tokenize(["blue"] * 3)
        assert not torch.allclose(three.compose(state, text), three.compose(other, text), atol=1e-4)


STAGES = [("mapping", "adapter", {"phi", "injection"}), ("composing", "adapter", {"adapters"}),
          ("composing", "lora", {"adapters"}), ("composing", "full", {"text_encoder"})]  # fmt: skip


@pytest.mark.parametrize(("stage", "tuning", "parts"), STAGES)
def test_exactly_the_parts_of_a_stage_are_trained_and_all_others_keep_their_bytes(make, patches, stage, tuning, parts):
    retriever = make(tuning=tuning)
    getattr(retriever, f"train_{stage}")()
    retriever.train()
    before = copy.deepcopy(retriever.state_dict())
    trained = {name.split(".")[0] for name, weight in retriever.named_parameters() if weight.requires_grad}
    assert trained == parts
    optimizer = torch.optim.AdamW([item for item in retriever.parameters() if item.requires_grad], lr=0.1)
    for _ in range(2):
        output = retriever(batch_of(retriever, patches), Wanted(more=frozenset({PLAIN})))
        (output.query_BD[:, 0].sum() + output.more[PLAIN][:, 1].sum()).backward()
        assert all(item.grad is None for item in retriever.parameters() if not item.requires_grad)
        optimizer.step()
    moved = {
        name.split(".")[0] for name, value in retriever.state_dict().items() if not torch.equal(value, before[name])
    }
    assert moved == parts


def test_frozen_phi_has_no_dropout_in_the_composing_stage(make, patches):
    retriever = make().train()
    assert torch.equal(retriever.encode_reference(patches), retriever.encode_reference(patches))
    retriever.train_mapping().train()
    assert not torch.equal(retriever.encode_reference(patches), retriever.encode_reference(patches))


def test_outputs_have_norm_one_and_a_checkpoint_comes_back(make, patches, tmp_path):
    for backbone in BACKBONES:
        retriever = make(backbone)
        output = retriever(batch_of(retriever, patches), Wanted(references=True, more=frozenset({PLAIN})))
        for vectors in (output.query_BD, output.target_BQD, output.reference_BQD, output.more[PLAIN]):
            assert torch.allclose(vectors.norm(dim=-1), torch.ones(()), atol=1e-5)
        retriever.save(tmp_path / backbone)
        again = load_retriever(tmp_path / backbone)
        assert again.digest == retriever.digest and again.config.source == ""
        assert torch.equal(query(again, patches), query(retriever, patches))


def test_the_gallery_side_keeps_its_digest_and_vectors_through_the_composing_stage(make, patches):
    retriever = make()
    digest, gallery, whole = retriever.target_digest, retriever.encode_gallery(patches), retriever.digest
    with torch.no_grad():
        for weight in retriever.adapters.parameters():
            weight.normal_()
    assert retriever.target_digest == digest and torch.equal(retriever.encode_gallery(patches), gallery)
    assert retriever.digest != whole
    assert make(patch_width=30).target_digest != digest


def test_training_free_rows_are_the_image_the_text_and_their_sum(make, patches):
    rows = {name: query(make(query=name), patches, ["red circle"] * 3) for name in ("image", "text", "sum")}
    image = make().encode_gallery(patches)[:, 0]
    assert torch.equal(rows["image"], image) and torch.equal(rows["text"][0], rows["text"][1])
    assert torch.allclose(rows["sum"], torch.nn.functional.normalize(rows["image"] + rows["text"], dim=-1), atol=1e-6)


def test_tuning_can_be_changed_in_a_checkpoint_and_sizes_cannot(make, patches):
    retriever = make()
    changed = retriever.changed({"tuning": "lora", "lora_rank": 2}).eval()
    assert {name.split(".")[0] for name, weight in changed.named_parameters() if weight.requires_grad} == {"adapters"}
    assert torch.equal(query(changed, patches), query(make(), patches))
    with pytest.raises(ConfigError, match="encoder.settings.tokens cannot be changed.*query_prompt"):
        changed.changed({"tokens": 4})


def test_a_copy_reads_with_its_own_adapters(make, patches):
    retriever = make()
    twin = copy.deepcopy(retriever)
    with torch.no_grad():
        for weight in twin.adapters.parameters():
            weight.normal_()
    assert torch.equal(query(retriever, patches), query(make(), patches))
    assert not torch.allclose(query(twin, patches), query(retriever, patches), atol=1e-3)


def test_what_does_not_fit_is_refused_in_words(make, patches, tmp_path):
    with pytest.raises(ConfigError, match="tokens have width 8, the texts' vectors 12"):
        make(patch_width=8)
    with pytest.raises(ConfigError, match="features hold the image embedding alone.*injection.layers=0"):
        make().encode_reference(patches[:, :1])
    with pytest.raises(ConfigError, match="is no encoder of images and texts"):
        make(source=str(tmp_path))
    with pytest.raises(ConfigError, match="injection.heads 3 must divide the words' width 16"):
        make(injection={"heads": 3})
    retriever = make()
    with pytest.raises(ConfigError, match="neither prototypes nor a text-only branch"):
        retriever(batch_of(retriever, patches), Wanted(reverse=True))
    with pytest.raises(ConfigError, match="needs the output 'length'"):
        retriever(batch_of(retriever, patches), Wanted(more=frozenset({"length"})))


def test_tokens_start_at_the_norm_of_the_words(make, patches):
    retriever = make(patch_width=24)
    words = retriever.word_table.norm(dim=1).mean()
    tokens = retriever.phi(torch.randn(200, 12)).norm(dim=-1).mean()
    assert tokens == pytest.approx(float(words), rel=0.1)
