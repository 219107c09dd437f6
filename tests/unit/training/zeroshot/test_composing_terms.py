"""The terms of the composing stage: composing, retention, retention_distill, rtd_doubling."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from cirray.core.errors import ConfigError
from cirray.mining.hard_negatives import UNUSED
from cirray.models.words.word_map import PLAIN
from cirray.training.config import TrainingConfig
from cirray.training.gather import NoGather
from cirray.training.loop import train
from cirray.training.retrieval import RetrievalTask
from cirray.training.terms.base import TERMS, TermInput
from cirray.training.torch_engine import TorchEngine

NONE = {"reference": False, "hard": 0}


@pytest.fixture
def make_task(make_retriever, triplets, features):
    def build(retriever=None, rows=None, **fields):
        settings = {"objective": "composing", "steps": 4, "batch": 8, "log_every": 1, "one_per_group": False, **fields}
        config = TrainingConfig.model_validate(settings)
        return RetrievalTask(retriever or make_retriever(), rows or triplets, features, config), config

    return build


def term(task, name, config):
    """The value of one term on the first batch, and its input."""
    kind = TERMS.get(name)
    batch = next(task.batches(0, 0, 1))
    settings = config.terms.get(name) or TERMS.settings(name)()
    output = task.model().eval()(batch, kind.wanted)
    return kind(task.setup, settings)(TermInput(output, batch, config, NoGather())), output, batch


def test_the_objective_is_composing_with_retention():
    terms = {"retention": 0.0, "retention_distill": 0.2}
    own, other = (TrainingConfig(objective="composing", terms=given) for given in ({}, terms))
    assert {name: term.weight for name, term in own.active_terms.items()} == {"composing": 1.0, "retention": 0.5}
    assert {name: term.weight for name, term in other.active_terms.items()} == {
        "composing": 1.0,
        "retention_distill": 0.2,
    }


def test_without_hard_image_reference_and_mask_the_loss_is_infonce(make_task):
    task, config = make_task(terms={"composing": NONE}, mask_duplicates=False, negatives="targets")
    assert torch.allclose(term(task, "composing", config)[0], term(task, "infonce", config)[0])


def test_the_reference_never_lowers_the_term_and_is_dropped_where_it_is_the_target(make_task, triplets):
    without = term(*_named(make_task, terms={"composing": NONE}))[0]
    with_it = term(*_named(make_task, terms={"composing": {**NONE, "reference": True}}))[0]
    assert with_it > without
    turned = [replace(row, target_id=row.reference_id) for row in triplets]
    same = [
        term(*_named(make_task, rows=turned, terms={"composing": {**NONE, "reference": flag}}))[0]
        for flag in (True, False)
    ]
    assert torch.allclose(*same)


def test_another_row_with_the_same_target_does_not_count(make_task, triplets):
    shared = [replace(row, target_id="img-9") if number % 2 else row for number, row in enumerate(triplets)]
    task, config = make_task(rows=shared, terms={"composing": NONE})
    value, output, batch = term(task, "composing", config)
    scores = output.query_BD @ output.target_BQD[:, 0].T / output.temperature
    key = batch.target_key_B
    scores[(key[:, None] == key[None]) & ~torch.eye(8, dtype=torch.bool)] = float("-inf")
    assert torch.allclose(value, functional.cross_entropy(scores, torch.arange(8)), atol=1e-5)
    loose, config = make_task(rows=shared, terms={"composing": NONE}, mask_duplicates=False)
    assert not torch.allclose(term(loose, "composing", config)[0], value, atol=1e-3)


def test_mined_images_are_candidates_of_their_row_alone(make_task):
    settings = {"reference": False, "hard": 3, "ranks": (1, 20), "max_cosine": 0.8}
    task, config = make_task(terms={"composing": settings})
    value, output, batch = term(task, "composing", config)
    own = config.terms["composing"]
    made, again = (TERMS.get("composing")(task.setup, own) for _ in range(2))
    assert np.array_equal(made._lists_MK, again._lists_MK)
    places = {name: place for place, name in enumerate(task.setup.image_ids)}
    for number, row in enumerate(task.setup.triplets):
        found = made._lists_MK[number][made._lists_MK[number] != UNUSED]
        assert places[row.target_id] not in found and places[row.reference_id] not in found
        assert (made._image_ID[found] @ made._image_ID[places[row.target_id]]).max() <= 0.8
    assert value > term(*_named(make_task, terms={"composing": NONE}))[0]


def test_hard_images_are_drawn_anew_in_every_epoch_and_alike_for_one_seed(make_task):
    settings = {"reference": False, "hard": 2, "ranks": (1, 20), "max_cosine": 1.0}
    task, config = make_task(terms={"composing": settings})
    kind, batch = TERMS.get("composing"), next(task.batches(0, 0, 1))
    output = task.model().eval()(batch, kind.wanted)
    made = kind(task.setup, config.terms["composing"])
    values = [
        float(made(TermInput(output, replace(batch, epoch=torch.tensor(epoch)), config, NoGather())))
        for epoch in (0, 0, 1)
    ]
    assert values[0] == values[1] != values[2]
    assert int(next(task.batches(1, 0, 1)).epoch) == 0 and int(next(task.batches(2, 0, 1)).epoch) == 1


def test_mined_images_are_refused_of_a_retriever_that_trains_its_image_side(make_task):
    task, config = make_task()
    kind, batch = TERMS.get("composing"), next(task.batches(0, 0, 1))
    output = task.model()(batch, kind.wanted)
    learned = replace(output, target_BQD=output.target_BQD.detach().requires_grad_())
    with pytest.raises(ConfigError, match="trains its image side.*training.terms.composing.hard=0"):
        kind(task.setup, config.terms["composing"])(TermInput(learned, batch, config, NoGather()))


def test_retention_is_infonce_of_pseudo_sentences_with_equal_references_hidden(make_task):
    task, config = make_task()
    value, output, batch = term(task, "retention", config)
    key, scores = batch.reference_key_B, output.more[PLAIN] @ output.reference_BQD[:, 0].T / output.temperature
    scores[(key[:, None] == key[None]) & ~torch.eye(8, dtype=torch.bool)] = float("-inf")
    assert torch.allclose(value, functional.cross_entropy(scores, torch.arange(8)), atol=1e-5)


def test_distilled_retention_is_zero_at_the_start_and_grows_with_the_tuning(make_task):
    task, config = make_task(objective="pretrain", terms={"retention_distill": 1.0})
    settings = config.terms["retention_distill"]
    kind = TERMS.get("retention_distill")(task.setup, settings)
    batch = next(task.batches(0, 0, 1))

    def value():
        output = task.model().eval()(batch, kind.wanted)
        return float(kind(TermInput(output, batch, config, NoGather())))

    assert abs(value()) < 1e-6
    with torch.no_grad():
        for weight in task.model().adapters.parameters():
            weight.normal_(std=0.3)
    assert value() > 0.01


def test_doubling_makes_the_reference_a_negative_by_construction(make_task):
    task, config = make_task(objective="pretrain", terms={"infonce": 0.0, "rtd_doubling": 1.0})
    value, output, batch = term(task, "rtd_doubling", config)
    both = torch.cat([output.target_BQD[:, 0], output.reference_BQD[:, 0]])
    key = torch.cat([batch.target_key_B, batch.reference_key_B])
    queries = torch.cat([output.query_BD, output.more[PLAIN]])
    scores = queries @ both.T / output.temperature
    scores[(key[:, None] == key[None]) & ~torch.eye(16, dtype=torch.bool)] = float("-inf")
    assert torch.allclose(value, functional.cross_entropy(scores, torch.arange(16)), atol=1e-5)


@pytest.mark.parametrize(
    "objective",
    [{"objective": "composing"}, {"objective": "pretrain", "terms": {"infonce": 0.0, "rtd_doubling": 1.0}}],
)
def test_the_composing_stage_trains_adapters_alone_and_lowers_its_loss(make_task, objective):
    task, config = make_task(**objective, steps=40, optimizer={"lr": 3e-3})
    before = {name: value.clone() for name, value in task.model().state_dict().items()}
    history = train(task, config, TorchEngine)
    moved = {
        name.split(".")[0] for name, value in task.model().state_dict().items() if not torch.equal(value, before[name])
    }
    assert moved == {"adapters"}
    assert np.mean([row["loss"] for row in history[-5:]]) < np.mean([row["loss"] for row in history[:5]]) - 0.1


def test_retention_keeps_plain_prompt_retrieval(make_task, features):
    images = torch.from_numpy(features.tokens[:8])

    def plain_loss(retriever):
        retriever.eval()
        with torch.no_grad():
            pseudo = retriever.pseudo_sentences(retriever.encode_reference(images))
            return float(
                functional.cross_entropy(pseudo @ retriever.encode_gallery(images)[:, 0].T / 0.07, torch.arange(8))
            )

    found = {}
    for weight in (0.0, 0.5):
        task, config = make_task(
            steps=60, optimizer={"lr": 5e-3}, terms={"composing": {"hard": 0}, "retention": weight}, seed=1
        )
        train(task, config, TorchEngine)
        found[weight] = plain_loss(task.model())
    assert found[0.5] < found[0.0] - 0.3


def test_training_reads_cached_tokens_alone(make_task, features):
    task, config = make_task(steps=2)
    read = features.read
    train(task, config, TorchEngine)
    assert features.read - read <= 2 * 2 * 8


def _named(make_task, **fields):
    task, config = make_task(**fields)
    return task, "composing", config


def test_hard_negatives_that_a_row_brings_stand_in_place_of_mined_ones(make_task, triplets):
    settings = {"reference": False, "hard": 4, "ranks": (1, 20), "max_cosine": 1.0}
    brought = {0: ("img-20", "img-21"), 2: ("img-22", triplets[2].reference_id)}
    rows = [replace(row, negative_ids=brought.get(number, ())) for number, row in enumerate(triplets)]
    task, config = make_task(rows=rows, terms={"composing": settings, "retention": 0.0})
    made = TERMS.get("composing")(task.setup, config.terms["composing"])
    names = [[task.setup.image_ids[at] for at in row if at != UNUSED] for row in made._lists_MK]
    assert names[0] == ["img-20", "img-21"] and names[2] == ["img-22"] and len(names[1]) > 4
    batch, row = task.batch(rows[:1]), replace(rows[0], negative_ids=())
    assert batch.negative_MPD is None  # they are known by their vectors, and not encoded in every step
    batch = replace(batch, row_B=torch.tensor([0]), epoch=torch.tensor(0))
    output = task.model().eval()(batch, TERMS.get("composing").wanted)
    value = made(TermInput(output, batch, config, NoGather()))
    vectors = task.model().encode_gallery(torch.from_numpy(task.setup.features.get([row.target_id, *names[0]])))[:, 0]
    scores = output.query_BD @ vectors.T / output.temperature
    assert torch.allclose(value, -scores.log_softmax(dim=1)[0, 0], atol=1e-4)
