"""Readers by name: `read_dataset` turns a `DataConfig` into a `CirDataset`, whatever the files look like."""

import importlib
from collections.abc import Callable
from typing import Any

from cirray.core.registry import Registry
from cirray.data.benchmark import CirDataset
from cirray.data.config import DataConfig

READERS: Registry[Callable[[Any], CirDataset]] = Registry("data format")
"""Format name -> reader of the `DataConfig` section of the same name."""

_MODULES = ("cirray.data.folder",)


def read_dataset(config: DataConfig) -> CirDataset:
    """Read the data set that a config names.

    Raises:
        ConfigError: for an unknown format.
        DataError: for files that cannot be used.
    """
    for module in _MODULES:
        importlib.import_module(module)
    return READERS.get(config.format)(getattr(config, config.format))
