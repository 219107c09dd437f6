"""What travels with a row: hard negatives among the candidates, further right answers that nobody pushes away."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from whole_losses import hard_negative_nce

from cirray.core.errors import DataError
from cirray.training.gather import NoGather
from cirray.training.objectives import Objective, wanted_outputs
from cirray.training.retrieval import swapped
from cirray.training.terms.base import TermInput
from cirray.triplets.rows import TripletRows, row_table

HARD = {0: ("f3-1", "f3-2", "f4-1"), 2: ("f5-1",)}
RIGHT = {1: ("f0-2", "f2-1"), 2: ("elsewhere",)}


def with_hard(triplets, hard=HARD, right=RIGHT):
    return [
        replace(row, negative_ids=hard.get(number, ()), positive_ids=right.get(number, ()))
        for number, row in enumerate(triplets)
    ]


def given(task, config, rows):
    batch = task.batch(rows)
    with torch.no_grad():
        return TermInput(task.model().eval()(batch, wanted_outputs(config)), batch, config, NoGather())


def value(task, config, rows):
    with torch.no_grad():
        return Objective(task.setup).loss(task.model().eval(), task.batch(rows), NoGather())


def losses_one_by_one(task, config, rows, count):
    """InfoNCE of each row by its definition, with what the row may see written out."""
    model, features = task.model().eval(), task.setup.features
    names = [row.target_id for row in rows]
    if config.negatives == "batch_images":
        names += [row.reference_id for row in rows]
    names += [image for row in rows for image in row.negative_ids[:count]]
    losses = []
    with torch.no_grad():
        tokens_NQD = model.encode_gallery(torch.from_numpy(features.get(names)))
        for place, row in enumerate(rows):
            patches_BPD = torch.from_numpy(features.get([row.reference_id]))
            query_BD = model.compose(model.encode_reference(patches_BPD), model.tokenize([row.modification]))
            scores_N = model.score(query_BD, tokens_NQD)[0] / model.temperature
            seen = [
                scores_N[at]
                for at, name in enumerate(names)
                if at == place or (name != row.target_id and name not in row.positive_ids)
            ]
            losses.append(float(torch.stack(seen).logsumexp(0) - scores_N[place]))
    return losses


@pytest.mark.parametrize("fields", [{}, {"negatives": "targets"}, {"chunk": 2}])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_infonce_with_hard_negatives_is_the_loss_by_its_definition(make_task, triplets, count, fields):
    rows = with_hard(triplets)
    task, config = make_task(rows=rows, objective="pretrain", hard_negatives=count, **fields)
    expected = losses_one_by_one(task, config, rows[:5], count)
    assert float(value(task, config, rows[:5]).total) == pytest.approx(sum(expected) / 5, abs=1e-5)
    plain = [replace(row, negative_ids=(), positive_ids=()) for row in rows[:5]]
    assert float(value(task, config, plain).total) != pytest.approx(sum(expected) / 5, abs=1e-3)


def test_rows_without_any_train_as_before(make_task, triplets):
    task, config = make_task(objective="pretrain")
    batch = task.batch(triplets[:4])
    assert batch.negative_MPD is None and batch.positive_key_BK is None
    assert given(task, config, triplets[:4]).candidates.tokens_NQD.shape[0] == 8
    off, _ = make_task(rows=with_hard(triplets), objective="pretrain", hard_negatives=0)
    assert off.batch(with_hard(triplets)[:4]).negative_MPD is None


def test_a_row_that_has_fewer_gives_nobody_a_further_negative(make_task, triplets):
    rows = with_hard(triplets)
    task, config = make_task(rows=rows, objective="pretrain", hard_negatives=3)
    found = given(task, config, rows[:3]).candidates
    hidden_BN = found.hidden.mask()[:, 6:]
    assert hidden_BN.tolist() == [[False] * 3 + [True] * 3 + [False, True, True]] * 3
    assert found.row_N.tolist() == [0, 1, 2, 0, 1, 2, 0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_the_drawn_negatives_are_a_function_of_seed_step_and_row_and_all_get_their_turn(make_task, triplets):
    rows = with_hard(triplets, {number: HARD[0] for number in range(9, 24)}, {})
    task, _ = make_task(rows=rows, hard_negatives=1)
    seen = [batch.negative_key_M.tolist() for batch in islice(task.batches(0, 0, 1), 12)]
    again, _ = make_task(rows=rows, hard_negatives=1)
    assert seen == [batch.negative_key_M.tolist() for batch in islice(again.batches(0, 0, 1), 12)]
    keys = set(task.images.places(HARD[0]).tolist())
    assert {key for step in seen for key in step} - {-1} == keys


def test_vdgs_contrast_of_the_real_rows_leaves_out_the_hard_negatives_of_the_others(make_task, triplets):
    rows = [
        replace(row, source="vdg" if number else "human")
        for number, row in enumerate(with_hard(triplets, right={1: ("f0-3",)}))
    ]
    task, config = make_task(rows=rows, objective="vdg", hard_negatives=3, negatives="targets")
    found = given(task, config, rows[:4])
    scores_BN = task.model().score(found.output.query_BD, found.candidates.tokens_NQD)
    back_BB = task.model().score(found.output.query_BD, found.output.target_BQD).T

    def nce(scores_N, place, seen):
        return hard_negative_nce(scores_N[None, seen], torch.tensor([seen.index(place)]), found.output.temperature)

    images = [0, 1, 2, 3, 4, 5, 6, 10]  # targets, three hard negatives of row 0, one of row 2
    forward = [nce(scores_BN[row], row, [at for at in images if (row, at) != (1, 2)]) for row in range(4)]
    backward = [nce(back_BB[row], row, [at for at in range(4) if (row, at) != (2, 1)]) for row in range(4)]
    expected = nce(scores_BN[0], 0, [0, 4, 5, 6]) + torch.stack(forward).mean() + torch.stack(backward).mean()
    assert float(value(task, config, rows[:4]).total) == pytest.approx(float(expected), abs=1e-4)


def test_a_bank_holds_the_hard_negatives_and_hides_the_further_right_answers(make_task, triplets, features):
    few = [row for row in triplets if row.group_id in ("f0", "f1", "f2")]
    task, config = make_task(rows=few, objective="spn", one_per_group=False)
    hard, _ = make_task(rows=with_hard(few, {0: ("f7-1",)}, {}), objective="spn", one_per_group=False)
    right, _ = make_task(rows=with_hard(few, {}, {0: ("f2-1",)}), objective="spn", one_per_group=False)
    assert "f7-1" in hard.setup.image_ids and "f7-1" not in task.setup.image_ids
    plain = value(task, config, few[:1])
    assert float(value(hard, config, few[:1]).total) > float(plain.total)
    held = value(right, config, with_hard(few, {}, {0: ("f2-1",)})[:1])
    assert float(held.total) < float(plain.total) and held.terms["bank_hidden"] > plain.terms["bank_hidden"]


def test_a_hard_negative_without_features_is_named_and_swapped_rows_have_none(make_task, triplets):
    with pytest.raises(DataError, match="ghost"):
        make_task(rows=with_hard(triplets, {0: ("ghost",)}))
    rows = TripletRows(swapped(row_table(with_hard(triplets))))
    assert len(rows) and all(not row.negative_ids and not row.positive_ids for row in rows)


def test_the_text_that_is_drawn_brings_its_own_hard_negatives(make_task, triplets):
    first, *rest = triplets
    other = replace(first, triplet_id="other", modification="round", negative_ids=("f6-1",))
    task, _ = make_task(rows=[first, other, *rest], pair_texts="drawn")
    folded = next(at for at, row in enumerate(task.triplets) if row.target_id == first.target_id)
    drawn = [task.texts.visit(np.array([folded]), step)[0] for step in range(20)]
    assert {(row.modification, row.negative_ids) for row in drawn} == {
        (first.modification, ()), ("round", ("f6-1",))
    }  # fmt: skip
