"""What a verb of the command line is: a config tree, a function that runs it, and a line that says what came out."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cirray.core.config import Config

PARTIAL = 3
"""Exit status of a run that completed without some of its images; each is named with its reason."""


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
    status: Callable[[Any], int] = lambda result: 0
    """Exit status of a run that completed (see `PARTIAL`)."""

    def config_class(self) -> type[Config]:
        """The root config class of this verb."""
        return load(self.config)

    def function(self) -> Callable[[Any], Any]:
        """The stage function of this verb."""
        return load(self.run)


def partial_status(manifest: Any) -> int:
    """`PARTIAL` when the artifact is complete but images had to be left out, else 0."""
    return PARTIAL if manifest.counts.get("rejected") else 0


def load(spec: str) -> Any:
    """Import `module:name`."""
    module, _, name = spec.partition(":")
    return getattr(importlib.import_module(module), name)
