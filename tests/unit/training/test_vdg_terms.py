"""VDG's loss terms on a small retriever: the concatenated contrast, and target-delta matching."""

from dataclasses import replace

import pytest
import torch
from whole_losses import contrastive

from cirray.core.config import merged, validate
from cirray.core.errors import ConfigError
from cirray.models.batch import TextBatch, Wanted
from cirray.models.composed import build_retriever
from cirray.models.config import RetrieverConfig
from cirray.models.matching import MATCHING, MATCHING_HARD, MatchingHead, draw_hard, released_weights, rows_of
from cirray.models.retriever_files import load_retriever
from cirray.models.scoring import score
from cirray.models.text import build_tokenizer
from cirray.training.config import TrainingConfig
from cirray.training.gather import NoGather
from cirray.training.loop import train
from cirray.training.objectives import Objective
from cirray.training.retrieval import RetrievalTask
from cirray.training.torch_engine import TorchEngine

PLAIN = {"negatives": "targets", "mask_duplicates": False}
HARD = {"infonce": 0.0, "hn_nce": {"beta": 0.5}}


def loss_of(task, config, rows, **changes):
    config = validate(TrainingConfig, merged(config.given(), changes))
    model = task.model().train()
    return Objective(replace(task.setup, config=config)).loss(model, task.batch(rows), NoGather())


def marked(rows, source="vdg"):
    return [replace(row, source=source) for row in rows]


def picked(triplets):
    """Rows whose targets and texts all differ."""
    return [triplets[number] for number in (0, 4, 8, 10)]


def test_hn_nce_with_beta_0_is_infonce_in_both_directions_over_the_batch(make_task, triplets):
    task, config = make_task(**PLAIN)
    rows = picked(triplets)
    output = task.model().train()(task.batch(rows))
    scores, own = score(output.query_BD, output.target_BQD), torch.arange(4)
    tau = float(output.temperature.detach())
    wanted = contrastive(scores, own, tau).mean() + contrastive(scores.T, own, tau).mean()
    found = loss_of(task, config, rows, terms={"infonce": 0.0, "hn_nce": 1.0})
    assert float(found.total.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)


def test_tcc_without_pseudo_rows_is_twice_the_loss_of_the_real_ones(make_task, triplets):
    task, config = make_task(**PLAIN)
    rows = picked(triplets)
    once = loss_of(task, config, rows, terms=HARD).total
    assert torch.allclose(
        loss_of(task, config, rows, objective="vdg", terms={"tcc": {"beta": 0.5}}).total, 2 * once, rtol=1e-5
    )


@pytest.mark.parametrize("negatives", ["targets", "batch_images"])
def test_tcc_is_the_real_rows_among_themselves_plus_all_rows(make_task, triplets, negatives):
    task, config = make_task(negatives=negatives)
    real, pseudo = picked(triplets), marked(triplets[13:16])
    alone = loss_of(task, config, real, terms=HARD).total
    together = loss_of(task, config, [*real, *pseudo], terms=HARD).total
    found = loss_of(task, config, [*real[:2], *pseudo, *real[2:]], objective="vdg", terms={"tcc": {"beta": 0.5}}).total
    assert torch.allclose(found, alone + together, rtol=1e-4)
    assert not torch.allclose(found, 2 * together, rtol=1e-3)


def test_pseudo_rows_never_stand_alone(make_task, triplets):
    task, config = make_task(**PLAIN)
    pseudo = marked(picked(triplets))
    all_rows = loss_of(task, config, pseudo, terms={"infonce": 0.0, "hn_nce": 1.0}).total
    assert torch.allclose(loss_of(task, config, pseudo, objective="vdg").total, all_rows, rtol=1e-5)


def test_row_weights_real_twice_give_any_term_the_rows_of_tcc(make_task, triplets):
    rows = [*triplets[:12], *marked(triplets[12:])]
    fields = {"rows": rows, "mixing": "paired", "batch": 4, "one_per_group": False}
    flat, _ = make_task(**fields)
    task, _ = make_task(**fields, row_weights="real_twice")
    batch, plain = next(task.batches(3, 0, 1)), next(flat.batches(3, 0, 1))
    assert plain.weight_B.tolist() == [1.0] * 8
    assert sorted(batch.weight_B.tolist()) == [1.0] * 4 + [3.0] * 4
    assert all(weight == (3.0 if real else 1.0) for weight, real in zip(batch.weight_B, batch.real_B, strict=True))
    with pytest.raises(ValueError, match="real_twice counts real rows twice"):
        make_task(**fields, row_weights="real_twice", objective="vdg")


def text_of(rows):
    ids = torch.tensor(rows)
    return TextBatch(ids, (ids > 0).long())


def test_a_hard_negative_is_never_the_own_image_or_text_nor_an_equal_one():
    keys = torch.tensor([7, 8, 7, 9])
    text = text_of([[2, 5, 3], [2, 6, 3], [2, 7, 3], [2, 6, 3]])
    torch.manual_seed(0)
    seen_images, seen_texts = set(), set()
    for _ in range(200):
        chosen = draw_hard(torch.zeros(4, 4), keys, text)
        seen_images |= set(zip(range(4), chosen.image_B.tolist(), strict=True))
        seen_texts |= set(zip(range(4), chosen.text_B.tolist(), strict=True))
    allowed = {(0, 1), (0, 3), (1, 0), (1, 2), (2, 1), (2, 3), (3, 0), (3, 2)}
    assert seen_images == allowed and seen_texts == allowed


def test_likely_hard_negatives_are_drawn_more_often_each_by_its_own_direction():
    scores = torch.tensor([[0.0, 3.0, 0.0], [0.0, 0.0, 3.0], [3.0, 0.0, 0.0]])
    text = text_of([[2, 5], [2, 6], [2, 7]])
    torch.manual_seed(0)
    chosen = [draw_hard(scores, torch.arange(3), text) for _ in range(200)]
    images = torch.stack([item.image_B for item in chosen]).float()
    texts = torch.stack([item.text_B for item in chosen])
    assert float((images[:, 0] == 1).float().mean()) > 0.85
    assert float((texts[:, 0] == 2).float().mean()) > 0.85


def test_every_rank_ranks_its_negatives_by_its_own_rows_and_local_numbers():
    """Two ranks of three rows: rank 1's block is [3:, 3:]; the released code reads [3:, :3] there."""
    scores = torch.zeros(6, 6)
    scores[3, 4] = scores[4, 5] = scores[5, 3] = 20.0
    scores[3:, :3] = 20.0 * (1 - torch.eye(3)).flip(0)
    text = text_of([[2, 5], [2, 6], [2, 7]])
    for _ in range(20):
        mine = draw_hard(scores[3:, 3:], torch.arange(3), text)
        assert mine.image_B.tolist() == [1, 2, 0] and mine.text_B.tolist() == [2, 0, 1]
    released = [draw_hard(scores[3:, :3], torch.arange(3), text).image_B.tolist() for _ in range(20)]
    assert any(row != [1, 2, 0] for row in released)


def test_released_negatives_may_be_copies_and_only_a_row_alone_has_none(task_with, triplets):
    """Four rows to one image: the released code draws among them, ours takes none."""
    task, _ = task_with()
    rows = [replace(row, target_id=triplets[0].target_id) for row in picked(triplets)]
    both = Wanted(more=frozenset({MATCHING, MATCHING_HARD}))
    more = task.model().eval()(task.batch(rows), both).more
    assert more[rows_of(MATCHING)].tolist() == [1.0] * 12
    assert more[rows_of(MATCHING_HARD)].tolist() == [1.0] * 8 + [0.0] * 4  # references are wrong images
    alone = task.model()(task.batch(rows[:1]), both).more
    assert alone[rows_of(MATCHING)].tolist() == [1.0, 0.0, 0.0]
    assert alone[rows_of(MATCHING_HARD)].tolist() == [1.0, 1.0, 0.0]  # its own reference


def test_the_hard_way_sharpens_by_the_temperature_and_the_released_one_does_not():
    similarity = torch.tensor([[0.0, 0.5, 0.4], [0.4, 0.0, 0.5], [0.5, 0.4, 0.0]])
    text = text_of([[2, 5], [2, 6], [2, 7]])
    torch.manual_seed(0)
    hard = torch.stack([draw_hard(similarity / 0.01, torch.arange(3), text).image_B for _ in range(50)])
    assert (hard == torch.tensor([1, 2, 0])).all()
    _, weights = released_weights(similarity)
    assert float(weights.max() / weights[weights > 0].min()) < 1.2


def test_nothing_attends_to_the_cls_token_in_the_released_way(task_with, triplets):
    """Its embedding may be anything there; the hard way reads it."""
    task, _ = task_with()
    model, batch = task.model().eval(), task.batch(picked(triplets))
    logits = []
    for changed in (False, True):
        if changed:
            words = model.qformer.embeddings.word_embeddings.weight.data
            words[model.tokenizer.cls_token_id] += torch.linspace(-3, 3, words.shape[1])
        torch.manual_seed(0)
        more = model(batch, Wanted(more=frozenset({MATCHING, MATCHING_HARD}))).more
        logits.append({name: more[name][:4].detach() for name in (MATCHING, MATCHING_HARD)})
    assert torch.equal(logits[0][MATCHING], logits[1][MATCHING])
    assert not torch.allclose(logits[0][MATCHING_HARD], logits[1][MATCHING_HARD], atol=1e-4)


def test_a_row_without_any_negative_stands_in_for_itself_with_weight_zero():
    chosen = draw_hard(torch.zeros(2, 2), torch.tensor([4, 4]), text_of([[2, 5], [2, 6]]))
    assert chosen.image_B.tolist() == [0, 1] and not chosen.has_image_B.any() and not chosen.has_text_B.any()


def test_the_matching_average_leaves_out_what_its_mask_does():
    torch.manual_seed(0)
    head, tokens = MatchingHead(6), torch.randn(2, 5, 6)
    mask = torch.tensor([[0, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
    found = head(tokens, mask)
    wanted = torch.stack([head.classifier(tokens[0, 1:3]).mean(dim=0), head.classifier(tokens[1, 1:]).mean(dim=0)])
    assert torch.allclose(found, wanted, atol=1e-6)
    other = tokens.clone()
    other[:, 0], other[0, 3:] = 100.0, -100.0
    assert torch.allclose(head(other, mask), found, atol=1e-6)
    assert not torch.allclose(head.classifier(tokens).mean(dim=1), found, atol=1e-3)


@pytest.fixture
def task_with(make_task, triplets, features):
    def build(matching="trained", **fields):
        plain, config = make_task(**fields)
        texts = [text for row in triplets for text in (row.modification, row.reverse_modification)]
        settings = plain.model().config.model_copy(update={"matching": matching})
        return RetrievalTask(
            build_retriever(settings, build_tokenizer(texts), 6, 0), triplets, features, config
        ), config

    return build


@pytest.mark.parametrize(("term", "output"), [("tdm", MATCHING), ("tdm_hard", MATCHING_HARD)])
def test_tdm_is_cross_entropy_over_matched_wrong_image_and_wrong_text_rows(task_with, triplets, term, output):
    task, config = task_with(objective="vdg", terms={term: 1.0})
    rows = picked(triplets)
    torch.manual_seed(3)
    found = loss_of(task, config, rows)
    torch.manual_seed(3)
    more = task.model()(task.batch(rows), Wanted(more=frozenset({output}))).more
    logits = more[output].log_softmax(dim=1)
    assert logits.shape == (12, 2) and more[rows_of(output)].tolist() == [1.0] * 12
    wanted = -(logits[:4, 1].sum() + logits[4:, 0].sum()) / 12
    assert float(found.terms[term]) == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert float(found.total.detach()) == pytest.approx(float(found.terms["tcc"] + found.terms[term]), rel=1e-5)


@pytest.mark.parametrize("output", [MATCHING, MATCHING_HARD])
def test_matching_reads_targets_and_texts_and_not_references(task_with, triplets, output):
    task, _ = task_with()
    batch, wanted = task.batch(picked(triplets)), Wanted(more=frozenset({output}))
    other = replace(batch, reference_BPD=torch.zeros_like(batch.reference_BPD))
    turned = replace(batch, target_BPD=batch.target_BPD.flip(0))
    logits = {}
    for name, given in (("own", batch), ("other", other), ("turned", turned)):
        torch.manual_seed(0)
        logits[name] = task.model().eval()(given, wanted).more[output][:4]
    assert torch.equal(logits["own"], logits["other"])
    assert not torch.allclose(logits["own"], logits["turned"], atol=1e-4)


def test_a_frozen_head_gets_no_gradient_and_still_teaches_the_reader(task_with, triplets):
    for matching, trained in (("trained", True), ("frozen", False)):
        task, config = task_with(matching, terms={"infonce": 0.0, "tdm": 1.0})
        loss_of(task, config, picked(triplets)).total.backward()
        model = task.model()
        assert (model.matching_head.classifier.weight.grad is not None) == trained
        assert float(model.qformer.query_tokens.grad.abs().sum()) > 0


def test_the_head_changes_no_other_weight_no_old_digest_and_survives_a_round_trip(task_with, make_task, tmp_path):
    plain, headed = make_task()[0].model(), task_with()[0].model()
    assert "matching" not in plain.description()["retriever"] and headed.description()["retriever"]["matching"]
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, headed.state_dict()[name])
    assert plain.digest != headed.digest
    headed.save(tmp_path)
    again = load_retriever(tmp_path)
    assert again.digest == headed.digest and again.matching_head is not None


def test_tdm_of_a_retriever_without_its_head_says_what_to_set(make_task, triplets):
    task, config = make_task(terms={"tdm": 1.0})
    with pytest.raises(ConfigError, match="encoder.settings.matching=trained"):
        loss_of(task, config, picked(triplets))


def test_the_old_description_of_a_retriever_without_head_is_unchanged():
    fields = set(RetrieverConfig().to_dict()) - {"matching"}
    retriever = build_retriever(RetrieverConfig(), build_tokenizer(["red"]), 6, 0)
    assert set(retriever.description()["retriever"]) == fields


def test_the_default_training_has_no_pseudo_rows_to_tell_apart():
    config = TrainingConfig()
    assert (config.mixing.kind, config.row_weights, config.pair_texts) == ("concat", "flat", "rows")


def test_the_matching_head_learns_more_than_how_many_pairs_match(task_with, triplets):
    """One of three shown pairs matches: a head that knows no more than that costs 0.6365 nats."""
    hard = {"infonce": 0.0, "tdm_hard": 1.0}
    task, config = task_with(terms=hard, steps=120, batch=8, optimizer={"lr": 1e-2}, one_per_group=False, log_every=10)
    history = train(task, config, TorchEngine)
    assert sum(row["tdm_hard"] for row in history[-3:]) / 3 < 0.5 < 0.6 < history[0]["tdm_hard"]
