import numpy as np
import pytest
import torch
from fork_ranks import trained

from cirray.core.errors import ConfigError
from cirray.models.retriever_files import load_retriever
from cirray.training.gather import NoGather
from cirray.training.loop import train
from cirray.training.torch_engine import TorchEngine
from cirray.training.zeroshot.config import MAPPINGS
from cirray.training.zeroshot.mapping import MappingTask
from cirray.training.zeroshot.text_only import TextOnlyTask, draw_noise, mask_words
from cirray.training.zeroshot.token_search import DistilTask, search_tokens

PIC2WORD = {"phi": {"hidden": 16, "dropout": 0.1, "activation": "relu"}, "injection": {"layers": 0}}
PLAIN = {"injection": {"layers": 0}}


def first(task):
    batch = next(task.batches(0, 0, 1))
    return task.loss(task.model(), batch, NoGather())


def make(make_setup, objective, **fields):
    if objective == "distil":
        setup = make_setup(PLAIN, objective=objective, search={"steps": 3, "batch": 6}, **fields)
        tokens = search_tokens(setup, range(6)).numpy()
        return DistilTask(make_setup(PLAIN, tokens=tokens, objective=objective, **fields))
    models = {"text_only": PLAIN, "pic2word": PIC2WORD}
    more = {"alignment": "none"} if objective == "pic2word" else {}
    name = "mapping" if objective == "pic2word" else objective
    return MAPPINGS.get(name)(make_setup(models.get(objective), objective=name, **more, **fields))


def test_the_objectives_are_these():
    assert MAPPINGS.names() == ["distil", "mapping", "text_only"]
    with pytest.raises(ConfigError, match="Unknown mapping objective 'mappping'.*Did you mean 'mapping'"):
        MAPPINGS.get("mappping")


@pytest.mark.parametrize("objective", ["mapping", "pic2word", "text_only", "distil"])
@pytest.mark.parametrize("precision", ["fp32", "bf16_weights"])
def test_only_phi_and_injection_train_whatever_the_objective(make_setup, objective, precision):
    task = make(make_setup, objective, precision=precision)
    retriever = task.setup.retriever
    before = {name: value.clone() for name, value in retriever.state_dict().items()}
    history = train(task, task.setup.config, TorchEngine)
    moved = {
        name.split(".")[0] for name, value in retriever.state_dict().items() if not torch.equal(value, before[name])
    }
    assert moved == ({"phi", "injection"} if objective == "mapping" else {"phi"}) and len(history) == 4


@pytest.mark.parametrize("objective", ["mapping", "pic2word", "text_only", "distil"])
def test_every_objective_lowers_its_own_loss(make_setup, objective):
    quiet = {"noise": 0.1} if objective == "text_only" else {}
    task = make(make_setup, objective, steps=60, optimizer={"lr": 3e-3, "schedule": "constant"}, **quiet)
    history = train(task, task.setup.config, TorchEngine)
    late, early = (np.mean([row["loss"] for row in rows]) for rows in (history[-10:], history[:10]))
    assert late < 0.9 * early


@pytest.mark.parametrize("objective", ["mapping", "text_only", "distil"])
def test_a_batch_in_pieces_has_the_gradients_of_the_whole_one(make_setup, objective):
    found = {}
    for pieces in (1, 3):
        task, rows = make(make_setup, objective, pieces=pieces, optimizer={"lr": 1e-3, "clip": None}), []
        task.model().register_forward_hook(
            lambda module, given, output, rows=rows: rows.append(len(given[0].tensors()[0]))
        )
        found[pieces] = trained(task, task.setup.config, 0, 1)
        assert rows == ([4] * 4 if pieces == 1 else [2, 1, 1] * 8)
    whole, parted = (found[pieces]["gradients"] for pieces in (1, 3))
    largest = max(abs(value) for values in whole.values() for value in values)
    apart = max(abs(a - b) for name in whole for a, b in zip(whole[name], parted[name], strict=True))
    assert largest > 1e-4 and apart < 1e-5 * max(largest, 1)
    assert [row["loss"] for row in found[1]["history"]] == pytest.approx(
        [row["loss"] for row in found[3]["history"]], rel=1e-3
    )


@pytest.mark.parametrize("alignment", ["none", "soft", "hard", "mixed"])
def test_alignment_is_left_out_hard_soft_or_mixed(make_setup, alignment):
    found = first(MappingTask(make_setup(alignment=alignment))).terms
    assert set(found) == ({"map"} if alignment == "none" else {"map", "sta"})
    ends = {name: first(MappingTask(make_setup(alignment=name))).terms["sta"] for name in ("soft", "hard")}
    if alignment == "mixed":
        assert torch.allclose(found["sta"], (ends["soft"] + ends["hard"]) / 2, atol=1e-5)
    assert not torch.allclose(ends["soft"], ends["hard"], atol=1e-3)


def test_a_mapping_task_saves_a_retriever_ready_for_the_composing_stage(make_setup, tmp_path):
    task = MappingTask(make_setup())
    task.save(task.model(), tmp_path)
    found = load_retriever(tmp_path)
    assert {name.split(".")[0] for name, item in found.named_parameters() if item.requires_grad} == {"adapters"}


def test_a_resumed_mapping_goes_on_as_an_unbroken_one(make_setup, tmp_path):
    from cirray.training.callbacks import Checkpoints
    from cirray.training.checkpoint import latest_checkpoint
    from cirray.training.loop import Callback

    class Stop(Callback):
        def on_step(self, state, row):
            if state.step == 2:
                raise KeyboardInterrupt

    whole = train(make(make_setup, "text_only", steps=4), make_setup(PLAIN, steps=4).config, TorchEngine)
    config = make_setup(PLAIN, steps=4, checkpoint_every=2).config
    with pytest.raises(KeyboardInterrupt):
        train(make(make_setup, "text_only"), config, TorchEngine, [Checkpoints(tmp_path), Stop()])
    resumed = train(make(make_setup, "text_only"), config, TorchEngine, resume=latest_checkpoint(tmp_path))
    assert resumed == whole


def test_text_only_training_with_no_masked_word_and_no_noise_has_no_loss(make_setup):
    every = tuple({word for text in make_setup().captions for word in text.split()})
    assert (
        float(first(TextOnlyTask(make_setup(PLAIN, objective="text_only", noise=0.0, keep_words=every))).total) < 1e-10
    )
    assert float(first(TextOnlyTask(make_setup(PLAIN, objective="text_only", noise=0.0, keep_words=()))).total) > 1e-4


def test_every_masked_slot_gets_the_same_token(make_setup):
    task = TextOnlyTask(make_setup(PLAIN, objective="text_only", keep_words=("and",)))
    retriever, seen = task.setup.retriever, []
    batch = next(batch for batch in task.batches(0, 0, 1) if int(batch.masked.slot_BT.sum(1).max()) == 2)
    retriever._sockets.table.register_forward_hook(lambda module, given, output: seen.append(output))
    task.model()(batch)
    row = int(batch.masked.slot_BT.sum(1).argmax())
    one, two = seen[-1][row][batch.masked.slot_BT[row]]
    assert torch.equal(one, two) and not torch.equal(one, seen[-1][row][0])


def test_runs_of_content_words_become_one_slot():
    keep = frozenset({"in", "the", "and"})
    assert mask_words("a red star in the top left and blue", keep) == "$ in the $ and $"
    assert mask_words("in the and", keep) == "in the and" and mask_words("costs $ 5", keep) == "$"


def test_noise_has_one_strength_a_row():
    noise = draw_noise(np.random.default_rng(0), 400, 500)
    strength = noise.std(dim=1)
    assert 0 <= strength.min() and strength.max() < 1.1 and strength.mean() == pytest.approx(0.5, abs=0.05)


def test_text_only_training_refuses_an_injection(make_setup):
    with pytest.raises(ConfigError, match="set model.injection.layers=0"):
        TextOnlyTask(make_setup())


def test_searched_tokens_find_their_images_and_leave_the_retriever_alone(make_setup):
    setup = make_setup(
        PLAIN, objective="distil", search={"steps": 80, "batch": 6, "average": 0.9, "phrase_weight": 0.1}
    )
    before = {name: value.clone() for name, value in setup.retriever.state_dict().items()}
    images = setup.retriever.encode_gallery(torch.from_numpy(setup.features.tokens))[:, 0]

    def nearness(tokens):
        return (setup.retriever.pseudo_sentences(tokens) * images).sum(1).mean()

    start = search_tokens(make_setup(PLAIN, objective="distil", search={"steps": 1, "batch": 6}), range(6))
    found = search_tokens(setup, range(6))
    assert found.shape == (6, 1, 16) and nearness(found) > nearness(start) + 0.1
    assert all(torch.equal(value, before[name]) for name, value in setup.retriever.state_dict().items())


def test_distillation_without_tokens_is_refused(make_setup):
    with pytest.raises(ConfigError, match="needs a token for every image"):
        DistilTask(make_setup(PLAIN))
