import numpy as np
import pytest
import torch

from cirray.data.shapes.corpus import passage
from cirray.data.shapes.grammar import vocabulary
from cirray.models.towers.config import LanguageModelConfig
from cirray.models.towers.language import build_language_model, build_word_tokenizer
from cirray.training.gather import NoGather
from cirray.training.language import IGNORE, LanguageTask, encode_passages
from cirray.training.loop import train
from cirray.training.torch_engine import TorchEngine
from cirray.training.tower_config import LanguageTrainingConfig

INSTRUCTION = "change"


def corpus(rng):
    return passage(rng, INSTRUCTION)


@pytest.fixture
def language():
    torch.manual_seed(0)
    words = [*vocabulary(), "same from to change describe the image"]
    config = LanguageModelConfig(width=32, layers=2, heads=2, intermediate=32, positions=128)
    return build_language_model(config, build_word_tokenizer(words))


def test_only_answer_words_carry_labels_each_after_the_word_before_it(language):
    rng = np.random.default_rng(0)
    passages = [corpus(rng) for _ in range(8)]
    batch = encode_passages(language, passages, True, 12)
    for row, text in enumerate(passages):
        labels = batch.labels_BT[row][batch.labels_BT[row] != IGNORE].tolist()
        assert labels == [*language.token_ids(text.answer), language.end_id]
        begin = int((batch.labels_BT[row] != IGNORE).nonzero()[0])
        assert begin == len(text.images) * 9 + len(text.difference) + len(language.token_ids(text.prompt)) - 1
        assert batch.ids_BTW[row, begin + 1 : begin + len(labels), 0].tolist() == labels[:-1]


def test_difference_slots_are_left_out_when_not_asked_for(language):
    rng = np.random.default_rng(0)
    passages = [found for found in (corpus(rng) for _ in range(6)) if found.marks]
    short, long = (encode_passages(language, passages, share, 12).ids_BTW.shape[1] for share in (False, True))
    assert long == short + 9


def test_batches_are_a_function_of_the_step(language):
    task = LanguageTask(language, corpus, LanguageTrainingConfig(steps=5, batch=4))
    stream = task.batches(0, 0, 1)
    batches = [next(stream) for _ in range(3)]
    again = next(task.batches(2, 0, 1))
    assert torch.equal(batches[2].ids_BTW, again.ids_BTW)
    assert batches[0].ids_BTW.shape != batches[2].ids_BTW.shape or not torch.equal(batches[0].ids_BTW, again.ids_BTW)


def test_heads_and_answer_get_better_and_the_heads_can_be_switched_off(language):
    config = LanguageTrainingConfig(steps=25, batch=8, log_every=1, checkpoint_every=None)
    history = train(LanguageTask(language, corpus, config), config, TorchEngine)
    first, last = history[0], history[-1]
    assert last["answer"] < first["answer"] and last["changed"] < first["changed"]
    batch = next(LanguageTask(language, corpus, config).batches(0, 0, 1))
    off = LanguageTask(language, corpus, config.model_copy(update={"heads": 0.0}))
    loss = off.loss(off.model(), batch, NoGather())
    assert torch.allclose(loss.total, loss.terms["answer"])
