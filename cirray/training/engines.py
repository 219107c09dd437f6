"""Engines by name; a library behind one is imported when its engine is chosen."""

import importlib

from cirray.core.errors import ConfigError, unknown_name
from cirray.core.extras import require
from cirray.training.engine import EngineFactory

ENGINES = {
    "torch": "cirray.training.torch_engine:torch_engine",
    "deepspeed": "cirray.training.deepspeed_engine:deepspeed_engine",
}


def find_engine(name: str) -> EngineFactory:
    """The factory behind `training.engine`.

    Raises ConfigError for an unknown name, with the known ones, or one whose library is not installed.
    """
    if name not in ENGINES:
        raise ConfigError(unknown_name("engine", name, ENGINES))
    if name == "deepspeed":
        require("deepspeed", "train", "training.engine=deepspeed")
    module, _, factory = ENGINES[name].partition(":")
    return getattr(importlib.import_module(module), factory)
