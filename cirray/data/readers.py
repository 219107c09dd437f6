"""Readers by name: `read_dataset` turns a `DataConfig` into a `CirDataset`."""

from collections.abc import Callable, Iterable
from typing import Any

from cirray.core.log import get_logger
from cirray.core.registry import Registry
from cirray.data.benchmark import CirDataset
from cirray.data.config import FORMATS, DataConfig
from cirray.data.presets import check_format

READERS: Registry[Callable[[Any], CirDataset]] = Registry("data format", [f"cirray.data.{name}" for name in FORMATS])
"""Format name -> reader of the `DataConfig` section of the same name."""
_LOGGER = get_logger("data")


def read_dataset(config: DataConfig) -> CirDataset:
    """Read the data set that a config names; what was left out or odd is logged, and kept in `notes`.

    Raises ConfigError for an unknown format or preset, and DataError for files that cannot be used.
    """
    dataset = _read(config)
    _tell(dataset, dataset.notes)
    return dataset


def read_queries(config: DataConfig) -> CirDataset:
    """The same for those who only score queries: notes about the training triplets are not logged."""
    dataset = _read(config)
    _tell(dataset, [note for note in dataset.notes if note not in dataset.training_notes])
    return dataset


def _read(config: DataConfig) -> CirDataset:
    reader = READERS.get(config.format)
    check_format(config.preset, config.format)
    return reader(getattr(config, config.format))


def _tell(dataset: CirDataset, notes: Iterable[str]) -> None:
    for note in notes:
        _LOGGER.info("%s: %s", dataset.name, note)
