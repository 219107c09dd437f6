"""Start weights and draws that depend on a seed alone, and leave torch's global generator as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_seed(seed: int) -> Iterator[None]:
    """Inside, torch's generator starts at `seed`; the CPU's goes on behind it as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
