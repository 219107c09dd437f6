import importlib.util
from pathlib import Path

import pytest
import torch

from cirray.core.config import validate
from cirray.core.errors import ArtifactError, ConfigError, DataError
from cirray.training.callbacks import Checkpoints
from cirray.training.config import AlignmentConfig, AnswerTrainingConfig
from cirray.training.gather import NoGather
from cirray.training.generation import AlignmentTask, GeneratorTask
from cirray.training.loop import train
from cirray.training.torch_engine import TorchEngine
from cirray.types import Triplet

_PATH = Path(__file__).parents[1] / "generators" / "conftest.py"
_SPEC = importlib.util.spec_from_file_location("generator_fixtures", _PATH)
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)
language, model_of, features = _MODULE.language, _MODULE.model_of, _MODULE.features

TRIPLETS = [
    Triplet(f"t{number}", reference, target, text)
    for number, (reference, target, text) in enumerate(
        [("a", "b", "make it red"), ("b", "a", "make it blue"), ("c", "d", "add red"), ("d", "c", "remove red small")]
    )
]
BAGS = {name: [("red",), ("blue", "small"), ("round",)] for name in "abcd"}


@pytest.mark.parametrize("precision", ["fp32", "bf16_weights"])
def test_training_lowers_the_answer_loss_and_leaves_the_language_model_alone(model_of, features, precision):
    model = model_of()
    before = [weight.clone() for weight in model.lm.parameters()]
    config = AnswerTrainingConfig(steps=30, batch=4, log_every=1, optimizer={"lr": 1e-2}, precision=precision)
    history = train(GeneratorTask(model, TRIPLETS, features, config), config, TorchEngine)
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert all(torch.equal(old, new) for old, new in zip(before, model.lm.parameters(), strict=True))


def test_a_checkpoint_leaves_the_frozen_language_model_out_and_a_run_goes_on_from_it(model_of, features, tmp_path):
    config = AnswerTrainingConfig(steps=6, batch=4, log_every=1, checkpoint_every=3)
    whole = train(GeneratorTask(model_of(), TRIPLETS, features, config), config, TorchEngine, [Checkpoints(tmp_path)])
    stored = torch.load(tmp_path / "step-00000003" / "engine.pt", weights_only=True)["model"]
    assert "projection.weight" in stored and not [name for name in stored if name.startswith("lm.")]
    task, half = GeneratorTask(model_of(), TRIPLETS, features, config), tmp_path / "step-00000003"
    assert train(task, config, TorchEngine, resume=half) == whole
    other = GeneratorTask(model_of(tuning="full"), TRIPLETS, features, config)
    with pytest.raises(ArtifactError, match="of another model"):
        train(other, config, TorchEngine, resume=half)


@pytest.mark.parametrize("pieces", [2, 3, 4])
def test_a_batch_in_pieces_trains_as_a_whole_one(model_of, features, pieces):
    settings = {"steps": 4, "batch": 4, "log_every": 1}
    whole, parted = model_of(), model_of()
    runs = [
        train(GeneratorTask(model, TRIPLETS, features, config), config, TorchEngine)
        for model, config in (
            (whole, AnswerTrainingConfig(**settings)), (parted, AnswerTrainingConfig(**settings, pieces=pieces)),
        )
    ]  # fmt: skip
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in runs[0]] == pytest.approx([row[name] for row in runs[1]], rel=1e-4)
    assert torch.allclose(whole.projection.weight, parted.projection.weight, atol=1e-5)
    rows = next(GeneratorTask(parted, TRIPLETS, features, AnswerTrainingConfig(batch=4)).batches(0, 0, 1))
    task = GeneratorTask(parted, TRIPLETS, features, AnswerTrainingConfig(batch=4, pieces=pieces))
    assert [len(piece.answers.ids_BT) for piece in task.pieces(rows)] == {2: [2, 2], 3: [2, 1, 1], 4: [1] * 4}[pieces]


def test_captions_go_through_the_language_model_in_pieces_too(model_of, features):
    captions = {"a": "make it red", "b": "add", "c": "remove blue", "d": "small"}
    found = []
    for pieces in (1, 3):
        config = AlignmentConfig(steps=3, batch=4, log_every=1, pieces=pieces)
        task = AlignmentTask(model_of(), features, config, captions=captions)
        found.append([row["loss"] for row in train(task, config, TorchEngine)])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_alignment_with_words_of_captions_runs_no_language_model_and_names_the_words(model_of, features):
    model = model_of()
    model.lm.register_forward_pre_hook(lambda *given: pytest.fail("the language model was run"))
    captions = {"a": "red round", "b": "blue small", "c": "red small", "d": "blue round"}
    config = AlignmentConfig(steps=150, batch=4, log_every=1, optimizer={"lr": 1e-2})
    task = AlignmentTask(model, features, config, captions=captions, words=True)
    history = train(task, config, TorchEngine)
    assert history[-1]["loss"] < history[0]["loss"] - 0.3
    names = ["red", "blue", "round", "small"]
    table = model.language.embed(torch.tensor([model.language.word_ids(name)[0] for name in names]))
    middle = table.mean(dim=0)
    for image, caption in captions.items():
        soft = model.read_image(torch.from_numpy(features.get([image])).float())[0]
        near = torch.nn.functional.cosine_similarity((soft - middle)[:, None], (table - middle)[None], dim=-1)
        assert {names[at] for at in near.argmax(dim=1).tolist()} == set(caption.split())
    assert abs(float(soft.norm(dim=-1).mean() / table.norm(dim=-1).mean()) - 1) < 0.2


def test_more_pieces_than_rows_are_refused():
    with pytest.raises(ConfigError, match="pieces=3 is more than the batch of 2"):
        validate(AnswerTrainingConfig, {"batch": 2, "pieces": 3})


def test_rows_that_workers_cannot_share_evenly_are_refused(model_of, features):
    task = GeneratorTask(model_of(), TRIPLETS[:3], features, AnswerTrainingConfig(batch=4))
    with pytest.raises(ConfigError, match="A batch of 3, all rows there are, cannot be shared evenly by 2 workers"):
        next(task.batches(0, 0, 2))


def test_trained_weights_of_another_generator_are_refused(model_of):
    state = model_of().tuned_state()
    model_of().load_tuned(state)
    with pytest.raises(ArtifactError, match="another generator"):
        model_of(tuning="full").load_tuned(state)


def test_alignment_draws_soft_tokens_to_the_bags(model_of, features):
    model = model_of()
    config = AlignmentConfig(steps=30, batch=4, log_every=1, optimizer={"lr": 1e-2})
    history = train(AlignmentTask(model, features, config, bags=BAGS), config, TorchEngine)
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]


def test_alignment_draws_the_difference_pass_to_what_two_captions_differ_in(model_of, features):
    model = model_of(passes=("reference", "target", "difference"))
    config = AlignmentConfig(steps=30, batch=4, log_every=1, optimizer={"lr": 1e-2})
    slots = [("make", "red", "blue"), ("it",), ("it",)]
    pairs = {pair: slots for pair in [("a", "b"), ("c", "d"), ("a", "d")]}
    history = train(AlignmentTask(model, features, config, bags=BAGS, pairs=pairs), config, TorchEngine)
    assert history[-1]["difference"] < 0.5 * history[0]["difference"]
    assert history[-1]["loss"] == pytest.approx(history[-1]["difference"] + history[-1]["image"], rel=1e-4)


def test_alignment_without_cells_writes_captions_through_the_language_model(model_of, features):
    model = model_of()
    config = AlignmentConfig(steps=20, batch=4, log_every=1, optimizer={"lr": 1e-2})
    captions = {name: f"it red {name}" for name in "abcd"}
    history = train(AlignmentTask(model, features, config, captions=captions), config, TorchEngine)
    assert history[-1]["loss"] < history[0]["loss"]


def test_the_loss_is_a_mean_over_tokens_of_the_global_batch(model_of, features):
    class TwoRanks(NoGather):
        world = 2

        def total(self, value):
            return value.detach() + 6

    task = GeneratorTask(model_of(), TRIPLETS, features, AnswerTrainingConfig(batch=4))
    batch = task.batch(TRIPLETS[:2])
    one, shared = task.loss(task.model(), batch, NoGather()), task.loss(task.model(), batch, TwoRanks())
    assert float(shared.total.detach()) == pytest.approx(2 * 8 / (8 + 6) * float(one.total.detach()), rel=1e-5)


def test_rows_that_cannot_be_trained_on_are_named(model_of, features):
    config = AnswerTrainingConfig(batch=1)
    with pytest.raises(DataError, match="no labelled triplets"):
        GeneratorTask(model_of(), [], features, config)
    with pytest.raises(DataError, match="'t9' has an empty"):
        GeneratorTask(model_of(), [Triplet("t9", "a", "b", " ")], features, config)
    with pytest.raises(DataError, match="'z' of triplet 't9' has no features"):
        GeneratorTask(model_of(), [Triplet("t9", "a", "z", "add")], features, config)
    with pytest.raises(DataError, match="2 phrases for 3 queries"):
        AlignmentTask(model_of(), features, AlignmentConfig(), bags={"a": [("red",), ("blue",)]})
    with pytest.raises(DataError, match="Alignment needs captions"):
        AlignmentTask(model_of(), features, AlignmentConfig(), captions={})
