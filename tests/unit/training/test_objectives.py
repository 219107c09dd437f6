from dataclasses import replace

import pytest
import torch
from modes import training_mode

from cirray.core.config import merged, validate
from cirray.core.errors import ConfigError, DataError
from cirray.training.config import TrainingConfig
from cirray.training.gather import NoGather
from cirray.training.objectives import Objective, wanted_outputs
from cirray.training.terms.base import TermInput

SMOOTH = {"label_smoothing": 0.1}


def changed(config, fields):
    return validate(TrainingConfig, merged(config.given(), fields))


def weights(config):
    return {name: term.weight for name, term in config.active_terms.items()}


def retrieval_loss(model, batch, config, task):
    return Objective(replace(task.setup, config=config)).loss(model, batch, NoGather())


def loss_of(task, config, rows, **changes):
    model = task.model().train()
    return retrieval_loss(model, task.batch(rows), changed(config, changes), task)


def candidates_of(task, config, batch):
    return TermInput(task.model()(batch, wanted_outputs(config)), batch, config, NoGather()).candidates


def test_weights_of_zero_reproduce_the_pretraining_loss_up_to_smoothing(make_task, triplets):
    task, config = make_task(objective="ptha", terms={"rtc": 0.0, "two_hop": 0.0, "infonce": SMOOTH})
    ptha, plain = loss_of(task, config, triplets[:6]), loss_of(task, config, triplets[:6], objective="pretrain")
    assert torch.equal(ptha.total, plain.total)
    unsmoothed = loss_of(task, config, triplets[:6], terms={"infonce": {"label_smoothing": 0.0}})
    assert abs(float(unsmoothed.total.detach()) - float(plain.total.detach())) > 1e-3


def test_label_smoothing_touches_the_main_term_only(make_task, triplets):
    task, config = make_task(objective="ptha")
    plain = loss_of(task, config, triplets[:6], terms={"infonce": {"label_smoothing": 0.0}}).terms
    smooth = loss_of(task, config, triplets[:6], terms={"infonce": SMOOTH}).terms
    assert torch.equal(plain["rtc"], smooth["rtc"]) and torch.equal(plain["two_hop"], smooth["two_hop"])
    assert not torch.allclose(plain["infonce"], smooth["infonce"], atol=1e-3)


def test_the_total_is_the_weighted_sum(make_task, triplets):
    task, config = make_task(objective="ptha", terms={"rtc": 0.3, "two_hop": 0.7})
    output = loss_of(task, config, triplets[:6])
    wanted = output.terms["infonce"] + 0.3 * output.terms["rtc"] + 0.7 * output.terms["two_hop"]
    assert float(output.total.detach()) == pytest.approx(float(wanted), rel=1e-6)


def test_pretraining_ignores_reverse_texts(make_task, triplets):
    task, config = make_task(objective="pretrain")
    assert task.batch(triplets[:4]).reverse is None
    other = [replace(row, reverse_modification="large green") for row in triplets[:4]]
    assert torch.equal(loss_of(task, config, triplets[:4]).total, loss_of(task, config, other).total)
    ptha, settings = make_task(objective="ptha")
    assert not torch.equal(loss_of(ptha, settings, triplets[:4]).total, loss_of(ptha, settings, other).total)


def test_no_gradient_flows_through_the_reverse_side(make_task, triplets):
    """The gradient equals the one with the reverse prototypes given as constants; detaching the other side differs."""
    task, config = make_task(objective="ptha", terms={"rtc": 0.0, "two_hop": 1.0})
    model, batch = task.model().train(), task.batch(triplets[:5])
    name = "qformer.query_tokens"
    found = torch.autograd.grad(retrieval_loss(model, batch, config, task).total, _weight(model, name))[0]
    constant = model.prototypes(batch.target_BPD, batch.reverse).detach().mean(dim=1)
    forward = model.prototypes(batch.reference_BPD, batch.text).mean(dim=1)
    plain = retrieval_loss(model, batch, changed(config, {"terms": {"two_hop": 0.0}}), task).total
    right = torch.autograd.grad(plain + (forward - constant).square().mean(), _weight(model, name), retain_graph=True)[
        0
    ]
    assert torch.allclose(found, right, atol=1e-5)
    moving = model.prototypes(batch.target_BPD, batch.reverse).mean(dim=1)
    wrong = torch.autograd.grad(plain + (forward - moving).square().mean(), _weight(model, name))[0]
    assert not torch.allclose(found, wrong, atol=1e-4)


def _weight(model, name):
    return dict(model.named_parameters())[name]


def test_rows_without_reverse_text_do_not_count_in_the_prototype_term(make_task, triplets):
    task, config = make_task(objective="ptha")
    some = [replace(row, reverse_modification=None) if index >= 3 else row for index, row in enumerate(triplets[:6])]
    alone = loss_of(task, config, triplets[:3]).terms["two_hop"]
    assert torch.allclose(loss_of(task, config, some).terms["two_hop"], alone, atol=1e-6)
    assert not torch.allclose(loss_of(task, config, triplets[:6]).terms["two_hop"], alone, atol=1e-4)


def test_a_batch_without_any_reverse_text_has_no_prototype_term(make_task, triplets):
    task, config = make_task(objective="ptha", terms={"rtc": 0.0})
    none = [replace(row, reverse_modification=None) for row in triplets[:4]]
    output = loss_of(task, config, none)
    assert float(output.terms["two_hop"]) == 0.0
    assert torch.equal(output.total, loss_of(task, config, none, objective="finetune").total)


def test_paper_mode_refuses_a_row_without_reverse_text(make_task, triplets):
    task, config = make_task(mode="paper", objective="ptha")
    rows = [*triplets[:3], replace(triplets[3], reverse_modification=None)]
    with pytest.raises(DataError, match="Row 3"):
        loss_of(task, config, rows)


def test_prototypes_are_refused_of_a_head_that_makes_none(make_task, triplets):
    task, config = make_task(objective="ptha")
    twin = task.model().changed({"fusion": "text_only"})
    with pytest.raises(ConfigError, match="two_pass"):
        retrieval_loss(twin, task.batch(triplets[:4]), config, task)


def test_all_images_of_the_batch_are_candidates_and_the_positives_come_first(make_task, triplets):
    task, config = make_task()
    batch = task.batch(triplets[:4:3] + triplets[6:8])
    candidates = candidates_of(task, config, batch)
    assert candidates.tokens_NQD.shape[0] == 8 and candidates.hidden.positive_B.tolist() == [0, 1, 2, 3]
    paper = changed(config, {"negatives": "targets", "mask_duplicates": False})
    candidates = candidates_of(task, paper, batch)
    assert candidates.tokens_NQD.shape[0] == 4 and not candidates.hidden.mask().any()


def test_a_second_copy_of_the_own_target_does_not_count_as_negative(make_task, triplets):
    task, config = make_task(negatives="targets")
    rows = [triplets[0], replace(triplets[4], weight=0.0)]
    doubled = [*rows, replace(triplets[0], triplet_id="copy")]
    single = float(loss_of(task, config, rows).terms["infonce"])
    assert float(loss_of(task, config, doubled).terms["infonce"]) == pytest.approx(single, rel=1e-5)
    assert float(loss_of(task, config, doubled, mask_duplicates=False).terms["infonce"]) > single + 1e-2


def test_row_weights_weigh_the_loss(make_task, triplets):
    task, config = make_task()
    rows = triplets[:6:3]

    def weighted(*weights):
        return float(
            loss_of(task, config, [replace(r, weight=w) for r, w in zip(rows, weights, strict=True)]).terms["infonce"]
        )

    first, second, both = weighted(1.0, 0.0), weighted(0.0, 1.0), weighted(3.0, 1.0)
    assert both == pytest.approx((3 * first + second) / 4, rel=1e-5)


def test_the_chunked_setting_changes_nothing_but_memory(make_task, triplets):
    task, config = make_task(objective="ptha")
    full, chunked = loss_of(task, config, triplets[:6]), loss_of(task, config, triplets[:6], chunk=2)
    name = "qformer.query_tokens"
    one, other = (torch.autograd.grad(out.total, _weight(task.model(), name))[0] for out in (full, chunked))
    assert torch.allclose(full.total, chunked.total, atol=1e-6) and torch.allclose(one, other, atol=1e-5)


def test_the_modes_differ_where_the_table_says():
    paper, improved = training_mode("paper", objective="ptha"), TrainingConfig()
    assert (paper.negatives, paper.mask_duplicates, paper.optimizer.clip) == ("targets", False, None)
    assert (improved.negatives, improved.mask_duplicates) == ("batch_images", True)
    assert paper.terms["infonce"].label_smoothing == 0.1 and paper.terms["two_hop"].missing_reverse == "error"
    assert training_mode("paper", objective="pretrain").terms["infonce"].label_smoothing == 0.0
    assert TrainingConfig(objective="ptha").terms["two_hop"].missing_reverse == "skip"


def test_sprc_adds_the_text_branch_and_draws_prototypes_to_its_prompts(make_task, triplets):
    task, config = make_task(objective="sprc", terms={"rtc": 0.3, "prompt_align": 0.7})
    assert wanted_outputs(config).prompts and not wanted_outputs(config).reverse
    model, batch = task.model().train(), task.batch(triplets[:6])
    output = retrieval_loss(model, batch, config, task)
    wanted = output.terms["infonce"] + 0.3 * output.terms["rtc"] + 0.7 * output.terms["prompt_align"]
    assert float(output.total.detach()) == pytest.approx(float(wanted), rel=1e-6)
    means = model.prototypes(batch.reference_BPD, batch.text).mean(dim=1)
    naive = (means - model.prompts.mean(dim=0)).square().mean()
    assert torch.allclose(output.terms["prompt_align"], naive.detach(), atol=1e-6)
    assert batch.reverse is None


def test_no_gradient_of_sprc_alignment_reaches_the_prompts(make_task, triplets):
    task, config = make_task(objective="sprc", terms={"rtc": 0.0, "prompt_align": 1.0})
    model, batch = task.model().train(), task.batch(triplets[:6])
    loss = retrieval_loss(model, batch, config, task).total
    assert torch.autograd.grad(loss, model.prompts, allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(loss, model.qformer.query_tokens)[0].abs().max() > 0
    plain = retrieval_loss(model, batch, changed(config, {"terms": {"prompt_align": 0.0}}), task).total
    assert float(loss.detach()) > float(plain.detach())


def test_sprc_needs_a_fusion_that_makes_prototypes(make_task, triplets):
    task, config = make_task(objective="sprc")
    twin = task.model().changed({"fusion": "image_only"})
    with pytest.raises(ConfigError, match="term prompt_align needs 'two_pass'"):
        retrieval_loss(twin, task.batch(triplets[:4]), config, task)


def test_terms_of_the_configuration_stand_over_the_objectives_own(make_task, triplets):
    task, config = make_task(objective="ptha", terms={"rtc": 0.3, "two_hop": 0.7})
    assert weights(config) == {"infonce": 1.0, "rtc": 0.3, "two_hop": 0.7}
    other = changed(config, {"terms": {"rtc": 0.0, "two_hop": 0.2}})
    assert weights(other) == {"infonce": 1.0, "two_hop": 0.2}
    assert wanted_outputs(config).text_only and not wanted_outputs(other).text_only
    found = loss_of(task, other, triplets[:6])
    assert "rtc" not in found.terms
    total = found.terms["infonce"] + 0.2 * found.terms["two_hop"]
    assert float(found.total.detach()) == pytest.approx(float(total), rel=1e-6)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"objective": "fintune"}, "Unknown objective 'fintune'. Did you mean 'finetune'"),
        ({"terms": {"infonse": 1.0}}, "Unknown loss term 'infonse'. Did you mean 'infonce'"),
        ({"terms": {"infonce": 0.0}}, "infonce all have weight 0"),
    ],
)
def test_unknown_objectives_and_terms_are_named_before_the_first_step(fields, words):
    with pytest.raises(ConfigError, match=words):
        validate(TrainingConfig, fields)


def test_a_field_over_a_modes_section_changes_that_field_alone():
    given = training_mode("paper", objective="ptha", optimizer={"lr": 2e-5}, terms={"two_hop": {"weight": 0.2}})
    paper = training_mode("paper", objective="ptha")
    assert given.optimizer == paper.optimizer.model_copy(update={"lr": 2e-5})
    assert given.terms["two_hop"] == paper.terms["two_hop"].model_copy(update={"weight": 0.2})
