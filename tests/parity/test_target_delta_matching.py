"""VDG's matching loss against a naive twin of the released one (`BLIP_tdm.py`, 245-303), on BLIP-2's layers.

The twin is the Q-Former written out on the authors' tensor names (`lavis_forward.py`), values and gradients. BLIP's
text encoder is one image-grounded pass; where the paper composes with it, the Q-Former composes with its two passes.
"""

import runpy
from pathlib import Path

import pytest
import torch
from modes import retriever_mode, training_mode
from torch.nn import functional

from cirray.models.batch import RetrievalBatch
from cirray.models.matching import released_weights
from cirray.models.sources.blip2 import open_blip2, retriever_from
from cirray.pipelines.weights.config import ConvertRun
from cirray.pipelines.weights.convert import run_convert
from cirray.training.gather import NoGather
from cirray.training.objectives import retrieval_loss

full = runpy.run_path(str(Path(__file__).with_name("test_full_models.py")))
lavis_forward = runpy.run_path(str(Path(__file__).parents[1] / "fixtures" / "lavis_forward.py"))
bert, linear, norm, small = lavis_forward["bert"], lavis_forward["linear"], lavis_forward["norm"], full["small"]
ROWS = 4
WATCHED = {
    "query_tokens": "query_tokens",
    "Qformer.bert.encoder.layer.1.attention.self.key.weight": "qformer.encoder.layer.1.attention.attention.key.weight",
    "Qformer.bert.embeddings.word_embeddings.weight": "embeddings.word_embeddings.weight",
}
"""Tensors whose gradients are compared: the authors' names, and the Q-Former's here."""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """An SPRC file in the authors' layout (with its matching head), and a retriever that holds the head fixed."""
    root = tmp_path_factory.mktemp("tdm")
    state = full["lavis"]["write"](root / "tuned.pt", "sprc", words=len(small.reader()))
    small.reader().save_pretrained(str(root / "words"))
    fields = {"tokenizer": str(root / "words"), "qformer_heads": 2, "vision_heads": 2}
    run_convert(ConvertRun(source=str(root / "tuned.pt"), out=str(root / "weights"), **fields))
    config = retriever_mode("paper", readout="cls", matching="frozen")
    return state, retriever_from(open_blip2(str(root / "weights")), config).eval()


@pytest.fixture
def batch(loaded):
    retriever = loaded[1]
    text = retriever.tokenize([*full["TEXTS"], "remove the blue square"])
    patches = torch.randn(2, ROWS, 5, small.PATCH_WIDTH, generator=torch.Generator().manual_seed(1))
    return RetrievalBatch(*patches, text, torch.arange(ROWS), torch.arange(ROWS) + ROWS, torch.ones(ROWS))


def grounded_similarity(state, seen, text):
    """Texts read with their own targets, against all targets: x_tdm @ x_tar.T."""
    queries = state["query_tokens"].expand(ROWS, -1, -1)
    mask = torch.cat([text.mask_BT.new_ones(queries.shape[:2]), text.mask_BT], dim=1)
    sentence = bert(state, queries, text.ids_BT, mask, seen)[:, : small.QUERIES]
    fused = bert(state, sentence, text.ids_BT, mask)[:, small.QUERIES]
    query = functional.normalize(linear(state, "text_proj", fused), dim=-1)
    gallery = functional.normalize(linear(state, "vision_proj", bert(state, queries, patches=seen)), dim=-1)
    return torch.einsum("bd,nqd->bnq", query, gallery).amax(-1)


def released(state, seen, text, hidden_cls=True, temperature=1.0):
    """The loss; the draws are torch's, images first."""
    with torch.no_grad():
        similarity = grounded_similarity(state, seen, text) / temperature
        weights = [functional.softmax(side, dim=1) + 1e-4 for side in (similarity.T, similarity)]
        for side in weights:
            side.fill_diagonal_(0)
        image, other = (torch.multinomial(side, 1)[:, 0] for side in weights)
    ids = torch.cat([text.ids_BT, text.ids_BT, text.ids_BT[other]])
    mask = torch.cat([text.mask_BT, text.mask_BT, text.mask_BT[other]])
    words = mask.clone()
    words[:, 0] = 0
    queries = state["query_tokens"].expand(3 * ROWS, -1, -1)
    attended = torch.cat([mask.new_ones(queries.shape[:2]), words if hidden_cls else mask], dim=1)
    shown = torch.cat([seen, seen[image], seen])
    logits = linear(state, "itm_head", bert(state, queries, ids, attended, shown)[:, small.QUERIES :])
    logits = (logits * words[..., None]).sum(1) / words.sum(1, keepdim=True)
    labels = torch.tensor([1] * ROWS + [0] * (2 * ROWS))
    return functional.cross_entropy(logits, labels)


def ours(retriever, batch, term="tdm"):
    settings = training_mode("paper", terms={"infonce": 0.0, term: 1.0}, batch=ROWS)
    torch.manual_seed(5)
    return retrieval_loss(retriever, batch, settings, NoGather()).total


def normed(state, patches):
    return norm(state, "ln_vision", patches, 1e-5)


def test_the_paper_mode_is_the_released_loss_and_moves_the_weights_as_it_does(loaded, batch):
    state, retriever = loaded
    state = {name: value.clone().requires_grad_(name in WATCHED) for name, value in state.items()}
    torch.manual_seed(5)
    theirs = released(state, normed(state, batch.target_BPD), batch.text)
    theirs.backward()
    retriever.zero_grad()
    loss = ours(retriever, batch)
    loss.backward()
    assert abs(float(loss.detach()) - float(theirs.detach())) < 1e-5
    own = dict(retriever.qformer.named_parameters())
    for name, mine in WATCHED.items():
        assert torch.allclose(own[mine].grad, state[name].grad, atol=1e-5), name
        assert float(state[name].grad.abs().max()) > 1e-3
    assert retriever.matching_head.classifier.weight.grad is None


@torch.no_grad()
def test_an_attended_cls_token_is_another_loss(loaded, batch):
    """Negative control of the parity above, and what tells `tdm_hard` from `tdm` beside the draws."""
    state, retriever = loaded
    torch.manual_seed(5)
    theirs = released(state, normed(state, batch.target_BPD), batch.text, hidden_cls=False)
    assert abs(float(ours(retriever, batch)) - float(theirs)) > 1e-3


@torch.no_grad()
def test_negatives_are_drawn_without_a_temperature_from_texts_read_with_their_targets(loaded, batch, monkeypatch):
    state, retriever = loaded
    seen: list[torch.Tensor] = []

    def watched(similarity_BB):
        seen.append(similarity_BB)
        return released_weights(similarity_BB)

    monkeypatch.setattr("cirray.models.matching.released_weights", watched)
    ours(retriever, batch)
    similarity = grounded_similarity(state, normed(state, batch.target_BPD), batch.text)
    assert torch.allclose(seen[0], similarity, atol=1e-5)
    references = grounded_similarity(state, normed(state, batch.reference_BPD), batch.text)
    assert not torch.allclose(seen[0], references, atol=1e-3)


def test_released_weights_are_a_softmax_plus_a_ten_thousandth_without_the_own_row():
    similarity = torch.tensor([[0.9, 0.1, -0.2], [0.0, 0.3, 0.5], [0.2, 0.2, 0.2]])
    image, text = released_weights(similarity)
    powers = similarity.exp()
    for row in range(3):
        for column in range(3):
            if row == column:
                assert float(image[row, column]) == float(text[row, column]) == 0
                continue
            assert float(text[row, column]) == pytest.approx(
                float(powers[row, column] / powers[row].sum()) + 1e-4, abs=1e-6
            )
            assert float(image[row, column]) == pytest.approx(
                float(powers[column, row] / powers[:, row].sum()) + 1e-4, abs=1e-6
            )
    assert not torch.allclose(text, (similarity / 0.01).softmax(dim=1), atol=0.05)
