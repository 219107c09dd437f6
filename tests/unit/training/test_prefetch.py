"""Batches drawn on a thread: the same ones, one ahead, with their errors."""

import threading
from itertools import count

import pytest

from cirray.core.errors import DataError
from cirray.training.config import LoopConfig
from cirray.training.loop import Callback, train
from cirray.training.prefetch import Ahead
from cirray.training.torch_engine import TorchEngine


def test_items_come_in_their_order_and_one_is_made_ahead():
    made = []
    with Ahead(made.append(number) or number for number in range(5)) as items:
        used = []
        for item in items:
            items.rest()
            used.append((item, list(made)))
    assert [item for item, _ in used] == [0, 1, 2, 3, 4]
    assert [len(before) for _, before in used] == [2, 3, 4, 5, 5]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_what_making_an_item_raises_is_raised_where_it_would_be_used():
    def items():
        yield 1
        raise DataError("Image 'x' has no features.")

    used = []
    with pytest.raises(DataError, match="Image 'x' has no features"), Ahead(items()) as ahead:
        used.extend(ahead)
    assert used == [1]


class Watch(Callback):
    """Notes which thread makes batches, and that none is at work in a callback."""

    def __init__(self, task):
        self.task, self.quiet = task, []

    def on_step(self, state, row):
        before = list(self.task.made)
        threading.Event().wait(0.02)
        self.quiet.append(before == self.task.made)


class Steps:
    """A task whose batches note who made them."""

    def __init__(self, broken=None):
        self.made, self.names, self.broken = [], set(), broken

    def model(self):
        import torch

        return torch.nn.Linear(1, 1)

    def batches(self, start_step, rank, world):
        import torch

        for step in count(start_step):
            if step == self.broken:
                raise DataError("Triplet 'a' lacks its picture.")
            self.made.append(step)
            self.names.add(threading.current_thread().name)
            yield torch.full((1, 1), float(step))

    def loss(self, model, batch, gather):
        from cirray.losses.output import LossOutput

        return LossOutput(model(batch).square().mean())


def test_callbacks_have_the_task_to_themselves_and_no_batch_is_made_in_vain():
    task = Steps()
    watch = Watch(task)
    train(task, LoopConfig(steps=4), TorchEngine, [watch])
    assert task.made == [0, 1, 2, 3] and watch.quiet == [True] * 4
    assert threading.current_thread().name not in task.names


def test_an_error_of_the_thread_ends_the_run_as_it_is_after_the_steps_before_it():
    task, steps = Steps(broken=3), []

    class Count(Callback):
        def on_step(self, state, row):
            steps.append(state.step)

    with pytest.raises(DataError, match="Triplet 'a' lacks its picture"):
        train(task, LoopConfig(steps=9), TorchEngine, [Count()])
    assert steps == [1, 2, 3]
