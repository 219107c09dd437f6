"""Seeds derived from one seed and a purpose, so that no two uses share a random stream."""

import hashlib

import numpy as np


def derive_seed(seed: int, *purpose: object) -> int:
    """A 63-bit seed for one purpose, stable over machines and Python versions."""
    text = "\x1f".join([str(seed), *(str(part) for part in purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def numpy_generator(seed: int, *purpose: object) -> np.random.Generator:
    """NumPy generator for one purpose."""
    return np.random.default_rng(derive_seed(seed, *purpose))
