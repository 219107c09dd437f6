"""Random draws that depend only on a seed and leave torch's global generator unchanged."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_seed(seed: int) -> Iterator[None]:
    """Inside, torch's generator starts at `seed`; afterwards the CPU's is as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
