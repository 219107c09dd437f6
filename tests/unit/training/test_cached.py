"""Gradient caching: a batch in pieces trains as the whole one, whatever the loss compares."""

from dataclasses import replace
from itertools import islice

import pytest
import torch
from fork_ranks import trained

from cirray.core.config import validate
from cirray.core.errors import ConfigError, DataError
from cirray.training.config import TrainingConfig
from cirray.training.gather import NoGather
from cirray.training.loop import train
from cirray.training.torch_engine import TorchEngine

SHARP = {"tcc": {"beta": 0.5}}
CASES = {
    "contrast": {"objective": "finetune", "terms": {"infonce": {"label_smoothing": 0.1}}},
    "targets alone": {"objective": "pretrain", "negatives": "targets", "mask_duplicates": False},
    "in tiles": {"objective": "finetune", "chunk": 2},
    "ptha": {"objective": "ptha"},
    "paper": {"objective": "ptha", "mode": "paper"},
    "sprc": {"objective": "sprc"},
    "vdg": {"objective": "vdg", "terms": SHARP},
    "hard negatives": {"objective": "vdg", "terms": {**SHARP, "infonce": 1.0}, "hard_negatives": 2},
    "bank": {"objective": "spn", "one_per_group": False},
}


def rows_of(triplets, case):
    """Rows with sources, and in one case with what travels with a row."""
    rows = [replace(row, source="vdg" if place % 3 == 2 else "human") for place, row in enumerate(triplets)]
    if case != "hard negatives":
        return rows
    return [
        replace(row, negative_ids=("f7-1", "f6-2")[: place % 3], positive_ids=("f5-1",))
        for place, row in enumerate(rows)
    ]


def gap(one, other):
    """Largest difference, over the largest gradient where that is above 1."""
    largest = max(abs(value) for values in one.values() for value in values)
    apart = max(abs(a - b) for name in one for a, b in zip(one[name], other[name], strict=True))
    return apart / max(largest, 1)


def run(make_task, triplets, case, pieces):
    fields = {"batch": 8, "steps": 3, "optimizer": {"clip": None}, **CASES[case]}
    task, config = make_task(rows=rows_of(triplets, case), pieces=pieces, **fields)
    return trained(task, config, 0, 1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("pieces", [3, 8])
def test_a_batch_in_pieces_has_the_gradients_of_the_whole_one(make_task, triplets, case, pieces):
    whole, parted = (run(make_task, triplets, case, count) for count in (1, pieces))
    assert max(abs(value) for values in whole["gradients"].values() for value in values) > 1e-2
    assert gap(whole["gradients"], parted["gradients"]) < 1e-5
    first, *later = zip(whole["history"], parted["history"], strict=True)
    assert first[0] == pytest.approx(first[1], rel=1e-4, abs=1e-5)
    assert all(mine == pytest.approx(theirs, rel=2e-3, abs=1e-4) for mine, theirs in later)


def test_smaller_batches_one_after_another_are_not_the_same(make_task, triplets):
    """The control: gradients of two contrasts of four rows, added up."""
    task, _ = make_task(batch=8, rows=rows_of(triplets, "contrast"))
    model, batch = task.model().train(), task.batch(triplets[:8])
    parts = [task.loss(model, batch.piece(begin, begin + 4, 8), NoGather()).total / 2 for begin in (0, 4)]
    added = torch.autograd.grad(sum(parts), model.qformer.query_tokens)[0]
    whole = torch.autograd.grad(task.loss(model, batch, NoGather()).total, model.qformer.query_tokens)[0]
    assert float((added - whole).abs().max()) > 1e-3


def with_graph(task, config):
    """Gradients of one step's pieces with their graphs kept and their dropout drawn as the loop draws it."""
    from cirray.core.seeding import derive_seed

    model, batch = task.model().train(), next(task.batches(0, 0, 1))
    found = []
    for number, piece in enumerate(batch.pieces()):
        torch.manual_seed(derive_seed(config.seed, "dropout", 0, 0, number))
        found.append(task.vectors(model, piece))
    columns = list(zip(*(piece.tensors() for piece in found), strict=True))
    whole = iter([torch.cat(column) if column[0].ndim else column[0] for column in columns])
    loss = task.loss_of(found[0].mapped(lambda _: next(whole)), batch.whole, NoGather())
    learned = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    values = torch.autograd.grad(loss.total, [weight for _, weight in learned], allow_unused=True)
    return {
        name: (torch.zeros_like(weight) if value is None else value).reshape(-1).tolist()
        for (name, weight), value in zip(learned, values, strict=True)
    }


def test_both_passes_draw_the_same_dropout(make_task, triplets, monkeypatch):
    fields = {"objective": "ptha", "batch": 8, "steps": 1, "dropout": 0.3, "optimizer": {"clip": None}, "pieces": 3}
    wanted = with_graph(*make_task(**fields))
    assert gap(wanted, trained(*make_task(**fields), 0, 1)["gradients"]) < 1e-5
    plain = {**fields, "pieces": 1}
    assert gap(wanted, trained(*make_task(**plain), 0, 1)["gradients"]) > 1e-3
    monkeypatch.setattr("cirray.training.cached.torch.manual_seed", lambda seed: None)
    assert gap(wanted, trained(*make_task(**fields), 0, 1)["gradients"]) > 1e-3


def test_no_more_rows_than_a_piece_are_in_the_model_or_read_at_once(make_task, features, triplets, monkeypatch):
    task, config = make_task(batch=8, pieces=4, steps=2)
    seen, read, get = [], [], features.get
    task.model().register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0].text)))
    monkeypatch.setattr(features, "get", lambda ids: read.append(len(ids)) or get(ids))
    train(task, config, TorchEngine)
    assert seen == [2] * 16 and set(read) == {2}


def test_what_draws_from_the_whole_batch_is_refused_in_pieces():
    with pytest.raises(ConfigError, match="pieces=2 does not go with the terms tdm and tdm_hard"):
        validate(TrainingConfig, {"terms": {"tdm": 0.5}, "pieces": 2})


def test_a_piece_that_cannot_be_read_is_told_as_it_is(make_task, monkeypatch, features):
    task, config = make_task(batch=8, pieces=4, steps=2)

    def broken(ids):
        raise DataError("Image 'f0-1' has no features.")

    monkeypatch.setattr(features, "get", broken)
    with pytest.raises(DataError, match="Image 'f0-1' has no features"):
        train(task, config, TorchEngine)


def test_a_step_is_a_pure_function_of_its_number_in_pieces_too(make_task):
    task, _ = make_task(batch=8, pieces=3, steps=4)
    again = [batch.whole.row_B.tolist() for batch in islice(task.batches(2, 0, 1), 2)]
    assert again == [batch.whole.row_B.tolist() for batch in islice(task.batches(0, 0, 1), 4)][2:]
