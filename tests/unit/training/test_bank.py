"""The negative bank in training: what it holds, what it hides, what it refuses; the target side stays as it was."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from modes import training_mode

from cirray.core.config import validate
from cirray.core.errors import ConfigError, DataError
from cirray.core.ids import Ids
from cirray.losses.hidden import WHOLE
from cirray.models.forked import ForkedRetriever
from cirray.models.retriever_files import load_retriever
from cirray.training.config import TrainingConfig
from cirray.training.gather import NoGather
from cirray.training.loop import train
from cirray.training.objectives import Objective
from cirray.training.terms import bank as bank_module
from cirray.training.terms.bank import NegativeBank, plan_bank
from cirray.training.torch_engine import TorchEngine


def bank_of(task, **fields):
    config = task.setup.config.terms["bank_infonce"].model_copy(update=fields)
    return NegativeBank(task.model(), plan_bank(task.setup), task.setup.features, config, NoGather())


def places(bank, *ids):
    return torch.from_numpy(bank.plan.ids.places(ids))


class Twins:
    """The features of another lookup, where some images look like others."""

    def __init__(self, inner, same=None, near=None):
        self.inner, self.same, self.near = inner, same or {}, near or {}

    def get(self, ids):
        rows = self.inner.get([self.same.get(name, self.near.get(name, name)) for name in ids])
        moved = np.array([name in self.near for name in ids])
        return rows + 1e-3 * moved[:, None, None].astype(np.float32)

    def __contains__(self, name):
        return name in self.inner


def with_features(task, features):
    task.setup = replace(task.setup, features=features)
    return task


def test_the_bank_holds_every_image_of_the_triplets_references_included(make_task, triplets):
    bank = bank_of(make_task(objective="spn")[0])
    wanted = {image for row in triplets for image in (row.reference_id, row.target_id)}
    assert set(bank.plan.ids) == wanted and len(bank) == len(wanted) == 32


def test_further_images_come_from_a_file_and_must_have_features(make_task, features, tmp_path):
    task, _ = make_task(objective="spn", rows=None)
    few = replace(task.setup, triplets=task.setup.triplets[:3], image_ids=Ids(task.setup.image_ids[:4]))
    listed = tmp_path / "ids.txt"
    listed.write_text("f7-1\n\nf7-2\n")
    assert set(plan_bank(few, str(listed)).ids) - set(few.image_ids) == {"f7-1", "f7-2"}
    listed.write_text("ghost\n")
    with pytest.raises(DataError, match="'ghost' of .* has no features"):
        plan_bank(few, str(listed))


def test_the_term_is_the_loss_of_the_queries_against_the_bank(make_task, triplets):
    task, config = make_task(objective="spn", terms={"bank_infonce": {"duplicate_cosine": None}})
    model, batch = task.model().train(), task.batch(triplets[:6])
    found = task.loss(model, batch, NoGather())
    bank = bank_of(task)
    logits = model.score(model(batch).query_BD, bank.rows.tokens_MQD) / model.temperature
    positive = places(bank, *[row.target_id for row in triplets[:6]])
    wanted = torch.nn.functional.cross_entropy(logits, positive)
    assert list(config.active_terms) == ["bank_infonce"]
    assert float(found.total.detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)


def test_masked_duplicates_do_not_contribute_and_the_own_reference_does(make_task, triplets, features):
    """Two images copy the first target to the byte, a third is near; one of the copies is the row's own reference."""
    rows = [triplets[0]]
    target, reference, copy, near = rows[0].target_id, rows[0].reference_id, "f5-1", "f6-1"
    task = with_features(
        make_task(objective="spn")[0], Twins(features, {copy: target, reference: target}, {near: target})
    )
    masked = bank_of(task)
    further = masked.hiding(places(masked, target), places(masked, reference)).further(WHOLE)[0]
    assert further[places(masked, copy, near)].all() and not further[places(masked, target, reference)].any()
    query = torch.nn.functional.normalize(torch.randn(1, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    at, own = places(masked, target), places(masked, reference)
    loss, hidden = masked.loss(query, at, own, torch.tensor(0.07))
    scores = torch.einsum("d,mqd->mq", query[0], masked.rows.tokens_MQD).amax(dim=1) / 0.07
    seen = ~further
    wanted = scores[seen].logsumexp(0) - scores[at[0]]
    assert float(loss[0]) == pytest.approx(float(wanted), rel=1e-4)
    assert float(hidden) == pytest.approx(float((~seen).sum()) / len(masked)) and float(hidden) > 0
    plain, _ = bank_of(task, duplicate_cosine=None, mask_same_image=False).loss(query, at, own, torch.tensor(0.07))
    assert float(plain[0]) > float(loss[0]) + 1e-3


def test_known_targets_of_the_same_reference_and_text_can_be_hidden(make_task, triplets):
    rows = [*triplets, replace(triplets[0], triplet_id="also", target_id="f5-2")]
    shares = []
    for known in (False, True):
        task, _ = make_task(
            objective="spn", rows=rows, terms={"bank_infonce": {"mask_known": known, "duplicate_cosine": None}}
        )
        terms = task.loss(task.model(), task.batch([rows[0], rows[9]]), NoGather()).terms
        shares.append(float(terms["bank_hidden"]))
    assert shares[0] == 0 and shares[1] == pytest.approx(1 / (2 * 32))


def test_known_targets_of_a_text_that_was_not_drawn_first_are_hidden_too(make_task, triplets):
    """Two texts of one pair are one row; the second of them stands with another target too."""
    first, other = triplets[0], triplets[9]
    second = replace(first, triplet_id="second", modification="small star")
    elsewhere = replace(first, triplet_id="also", target_id="f5-2", modification="small star")
    task, config = make_task(
        objective="spn", batch=3, rows=[first, second, other, elsewhere], pair_texts="drawn",
        terms={"bank_infonce": {"mask_known": True, "duplicate_cosine": None}},
    )  # fmt: skip
    assert len(task.setup.triplets) == 3
    terms = task.loss(task.model(), task.batch([elsewhere, other]), NoGather()).terms
    images = len(task.setup.image_ids)
    assert float(terms["bank_hidden"]) == pytest.approx(1 / (2 * images))


def test_a_random_subset_of_negatives_is_drawn_anew_and_keeps_the_target(make_task):
    bank = bank_of(make_task(objective="spn")[0], neg_num=5)
    at = torch.tensor([3, 3, 8])
    torch.manual_seed(11)
    first = bank.hiding(at, at)(WHOLE)
    other = bank.hiding(at, at)(WHOLE)
    torch.manual_seed(11)
    draws = [first, bank.hiding(at, at)(WHOLE), other]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert (~draws[0]).sum(dim=1).tolist() == [6, 6, 6] and not draws[0][torch.arange(3), at].any()
    assert not torch.equal(draws[0][0], draws[0][1])


@pytest.mark.parametrize("scores", [1, 3 * 2 * 7])
def test_a_bank_in_blocks_hides_and_draws_what_the_whole_one_does(make_task, features, monkeypatch, scores):
    """Copies, near ones, known ones and a random draw: value, gradient and share in blocks of one and of seven rows."""
    task = with_features(make_task(objective="spn")[0], Twins(features, {"f5-1": "f0-1"}, {"f6-1": "f0-1"}))
    query = torch.nn.functional.normalize(torch.randn(2, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    found = []
    for most in (2**26, scores):
        monkeypatch.setattr(bank_module, "_SCORES", most)
        bank, asked = bank_of(task, neg_num=20), query.clone().requires_grad_()
        at, own = places(bank, "f0-1", "f1-1"), places(bank, "f0-0", "f1-0")
        known = torch.stack([places(bank, "f2-1", "f2-2"), torch.tensor([-1, -1])])
        torch.manual_seed(5)
        loss, hidden = bank.loss(asked, at, own, torch.tensor(0.07), known)
        found.append((loss, hidden, torch.autograd.grad(loss.sum(), asked)[0]))
    for whole, parted in zip(*found, strict=True):
        assert torch.allclose(whole, parted, atol=1e-5) and whole.abs().max() > 0
    assert float(found[0][1]) >= 4 / (2 * 32)


def test_no_gradient_reaches_the_target_side_and_its_digest_stays(make_task, tmp_path):
    task, config = make_task(objective="spn", steps=3, terms={"bank_infonce": {"learn_temperature": True}})
    model = task.model()
    assert isinstance(model, ForkedRetriever)
    before, queries = model.target_digest, [weight.clone() for weight in model.query.parameters()]
    vectors = model.encode_gallery(next(iter(task.batches(0, 0, 1))).target_BPD)
    history = train(task, config, TorchEngine)
    assert model.target_digest == before and all(weight.grad is None for weight in model.gallery.parameters())
    assert torch.equal(model.encode_gallery(next(iter(task.batches(0, 0, 1))).target_BPD), vectors)
    moved = [not torch.equal(a, b) for a, b in zip(queries, model.query.parameters(), strict=True)]
    assert any(moved) and history[-1]["bank_hidden"] < 0.1
    task.save(model, tmp_path)
    again = load_retriever(tmp_path)
    assert again.target_digest == before and again.digest == model.digest


def test_the_temperature_is_fixed_by_default_and_clamped_when_learned(make_task):
    for learn, start in ((False, 0.07), (True, 0.07), (True, 0.5)):
        task, config = make_task(objective="spn", steps=3, terms={"bank_infonce": {"learn_temperature": learn}})
        with torch.no_grad():
            task.model().raw_temperature.fill_(start)
        train(task, config, TorchEngine)
        moved = float(task.model().raw_temperature.detach()) != pytest.approx(start, abs=1e-9)
        assert moved == learn
    assert float(task.model().temperature.detach()) <= 0.1 + 1e-6


def test_a_trainable_target_side_is_refused(make_task):
    task, _ = make_task(objective="finetune")
    spn = TrainingConfig(objective="spn")
    with pytest.raises(ConfigError, match="needs a frozen target side.*trainable, e.g. 'prompts'|trainable, e.g."):
        Objective(replace(task.setup, config=spn))


@pytest.mark.parametrize("when", ["before the first step", "after training"])
def test_a_target_side_that_moved_is_refused(make_task, triplets, tmp_path, when):
    task, _ = make_task(objective="spn")
    model = task.model()
    if when == "after training":
        task.loss(model, task.batch(triplets[:4]), NoGather())
    with torch.no_grad():
        model.gallery.vision_projection.weight.add_(0.1)
    with pytest.raises(ConfigError, match="its weights have moved, so the bank is stale"):
        task.loss(model, task.batch(triplets[:4]), NoGather()) if when != "after training" else task.save(
            model, tmp_path
        )


def test_held_out_images_are_refused_in_the_bank(make_task):
    task, _ = make_task(objective="spn")
    setup = replace(task.setup, held_out=frozenset({"f3-2", "elsewhere"}))
    with pytest.raises(DataError, match="negative bank holds 1 val or test images of the data set: f3-2"):
        plan_bank(setup)
    assert plan_bank(replace(setup, held_out=frozenset({"elsewhere"}))).ids


def test_the_bank_joins_any_objective(make_task, triplets):
    for objective in ("ptha", "sprc", "finetune"):
        task, _ = make_task(objective=objective, terms={"bank_infonce": 1.0, "infonce": 0.0})
        output = task.loss(task.model(), task.batch(triplets[:4]), NoGather())
        assert "bank_infonce" in output.terms and "infonce" not in output.terms
        output.total.backward()
        assert all(weight.grad is None for weight in task.model().gallery.parameters())


def test_two_rows_with_one_reference_and_different_texts_get_different_prompts(make_task, triplets):
    """The released code keeps prompts by image, so that both rows get those of whichever came last."""
    task, _ = make_task(objective="spn", terms={"bank_infonce": {"trains": "second_pass"}})
    model, rows = task.model().eval(), [triplets[0], triplets[1]]
    assert rows[0].reference_id == rows[1].reference_id
    batch = task.batch(rows)
    prompts = model.query.fuse(model.encode_reference(batch.reference_BPD), batch.text).prototype_BQW
    assert not torch.allclose(prompts[0], prompts[1], atol=1e-3)
    twice = task.batch([rows[1], rows[1]])
    kept = model.query.fuse(model.encode_reference(twice.reference_BPD), twice.text).prototype_BQW
    assert torch.allclose(kept[0], kept[1]) and not torch.allclose(kept[0], prompts[0], atol=1e-3)


def test_the_paper_mode_trains_the_second_pass_alone_without_masks(make_task, triplets):
    mode = training_mode("paper", objective="spn", batch=4, steps=2, log_every=1)
    bank = mode.terms["bank_infonce"]
    assert bank.trains == "second_pass" and bank.duplicate_cosine is None and not bank.mask_same_image
    assert mode.optimizer.schedule == "constant" and bank.learn_temperature
    task, _ = make_task(objective="spn", terms={"bank_infonce": bank.to_dict()})
    output = task.loss(task.model().train(), task.batch(triplets[:4]), NoGather())
    output.total.backward()
    weights = dict(task.model().query.named_parameters())
    assert weights["text_projection.weight"].grad.abs().max() > 0
    crossing = [weight for name, weight in weights.items() if "crossattention" in name and weight.grad is not None]
    assert crossing == [] and float(output.terms["bank_hidden"]) == 0


def test_zero_3_is_refused_by_the_configuration_with_the_remedy():
    fields = {"objective": "spn", "engine": "deepspeed", "zero_stage": 3}
    with pytest.raises(ConfigError, match="bank_infonce.*zero_stage to 2 or less"):
        validate(TrainingConfig, fields)
    assert validate(TrainingConfig, {**fields, "terms": {"bank_infonce": 0, "infonce": 1}}).zero_stage == 3


def test_the_order_of_batches_is_that_of_any_other_objective(make_task):
    spn, plain = make_task(objective="spn")[0], make_task()[0]
    keys = [[batch.target_key_B.tolist() for batch in islice(task.batches(0, 0, 1), 3)] for task in (spn, plain)]
    assert keys[0] == keys[1]


def test_bf16_training_neither_rounds_the_bank_nor_the_cosines_of_duplicates(make_task, triplets):
    task, _ = make_task(objective="spn")
    exact, every = bank_of(task), torch.arange(32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = bank_of(task)
        masks = [bank.hiding(every, every).further(WHOLE) for bank in (exact, rounded)]
        assert task.loss(task.model(), task.batch(triplets[:4]), NoGather()).total.dtype == torch.float32
    assert torch.equal(exact.rows.tokens_MQD, rounded.rows.tokens_MQD) and torch.equal(*masks)
    assert torch.equal(masks[0], exact.hiding(every, every).further(WHOLE))


def test_the_bank_joins_bf16_weights(make_task):
    task, config = make_task(objective="spn", steps=2, precision="bf16_weights")
    assert len(train(task, config, TorchEngine)) == 2
