"""What a verb of the command line is: a config tree, a function that runs it, and a line that says what came out."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cirray.core.config import Config


@dataclass(frozen=True)
class Verb:
    """One verb. `config` and `run` are `module:name` and are imported only when the verb is used."""

    name: str
    help: str
    config: str
    run: str
    example: str = ""
    show: Callable[[Any], str] | None = None
    """Turns the result into the text printed on standard output; None prints the artifact's counts."""

    def config_class(self) -> type[Config]:
        """The root config class of this verb."""
        return load(self.config)

    def function(self) -> Callable[[Any], Any]:
        """The stage function of this verb."""
        return load(self.run)


def load(spec: str) -> Any:
    """Import `module:name`."""
    module, _, name = spec.partition(":")
    return getattr(importlib.import_module(module), name)
