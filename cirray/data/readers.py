"""Readers by name: `read_dataset` turns a `DataConfig` into a `CirDataset`."""

from collections.abc import Callable
from typing import Any

from cirray.core.log import get_logger
from cirray.core.registry import Registry
from cirray.data.benchmark import CirDataset
from cirray.data.config import FORMATS, DataConfig

READERS: Registry[Callable[[Any], CirDataset]] = Registry("data format", [f"cirray.data.{name}" for name in FORMATS])
"""Format name -> reader of the `DataConfig` section of the same name."""
_LOGGER = get_logger("data")


def read_dataset(config: DataConfig, training: bool = True) -> CirDataset:
    """Read the data set that a config names; what was left out or odd is logged, and kept in `notes`.

    Args:
        config: format, preset and folders.
        training: whether notes about the training triplets are logged; False for those who only score queries.

    Raises ConfigError for an unknown format, and DataError for files that cannot be used.
    """
    reader = READERS.get(config.format)
    dataset = reader(getattr(config, config.format))
    for note in dataset.notes:
        if training or note not in dataset.training_notes:
            _LOGGER.info("%s: %s", dataset.name, note)
    return dataset
