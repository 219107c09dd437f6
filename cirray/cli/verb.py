"""A verb of the command line: its config class, the function that runs it, and its output."""

import importlib
import importlib.resources
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cirray.core.config import Config, load_config
from cirray.core.errors import ConfigError, unknown_name

VERBS = (
    "world", "doctor", "embed",
    "mine", "caption", "templates", "train-generator", "generate", "check", "oracle", "sample", "rewrite",
    "import triplets",
    "towers", "clip", "map", "pretrain", "finetune", "tune",
    "evaluate", "score", "submit", "browse", "compare", "study",
    "index", "gallery", "gallery use", "index add", "index remove", "index compact", "search", "serve", "keys",
    "quickstart", "init", "config", "plan", "convert", "export", "export triplets", "completion",
)  # fmt: skip
"""Every verb, in the order of `cirray --help`; some are two words."""
GROUPS = {
    "data": "Data: images and their features",
    "texts": "Texts: pairs, captions, modification texts, triplets",
    "training": "Training: towers and retrievers",
    "evaluation": "Evaluation: figures, reports, comparisons",
    "search": "Search: index, queries, service",
    "tools": "Tools",
}
"""Group of verbs -> its heading in `cirray --help`."""

PARTIAL = 3
"""Exit status of a run that completed without some images, which are named with reasons."""
FLAGS = ("--help", "--print-config", "--restart")
"""Flags of the command line itself; they take no value."""


@dataclass(frozen=True)
class Verb:
    """One verb. `config` and `run` are `module:name` and are imported only when the verb is used."""

    name: str
    group: str
    """Where `cirray --help` shows it: a key of `GROUPS`."""
    help: str
    config: str
    run: str
    example: str = ""
    show: Callable[[Any], str] | None = None
    """Turns the result into the text printed on standard output; None prints the artifact's counts."""
    status: Callable[[Any], int] = lambda result: getattr(result, "exit_status", 0)
    """Exit status from the result of a completed run; 0 by default (see also `PARTIAL`)."""
    positional: str = ""
    """Fields that words without a name set, in their order: `cirray doctor ROOT`. The last one takes all further words
    when it ends with `...`."""
    switches: Mapping[str, str] = field(default_factory=dict)
    """Flags without a value -> their assignment: `--json` -> `as_json=true`."""
    restarts: bool = True
    """Whether it writes artifacts, whose half-written work `--restart` throws away."""
    takes_file: str = ""
    """Field that a .yaml word sets, in a verb whose files are another program's: `cirray serve retriever.yaml`."""
    gathers: tuple[str, str] = ("", "")
    """Fields that take the files of another verb, and the assignments meant for it (`cirray plan RUN.yaml ...`)."""

    file: str = ""
    """Config file in the package that is read if none is given."""

    def usual(self) -> type[Config] | Config:
        """Defaults: the class's, or those of the package's own file."""
        return load_config(self.config_class(), self.own_file()) if self.file else self.config_class()

    def own_file(self) -> str | None:
        """Path of this verb's config file in the package."""
        return str(importlib.resources.files("cirray").joinpath(self.file)) if self.file else None

    def config_class(self) -> type[Config]:
        """The root config class of this verb."""
        return load(self.config)

    def function(self) -> Callable[[Any], Any]:
        """The stage function of this verb."""
        return load(self.run)


def verb(name: str) -> Verb:
    """The verb of that name. Raises ConfigError: for an unknown verb, with the known ones."""
    if name not in VERBS:
        raise ConfigError(unknown_name("verb", name, VERBS))
    found: Verb = load("cirray.cli.stages:STAGES")[name]
    return found


def split_verb(words: Sequence[str]) -> tuple[str, list[str]]:
    """The verb that a command line begins with, of two words where there is one, and the other words."""
    two = " ".join(words[:2])
    return (two, list(words[2:])) if two in VERBS else (words[0], list(words[1:]))


def partial_status(manifest: Any) -> int:
    """`PARTIAL` when the artifact is complete but images had to be left out, else 0."""
    return PARTIAL if manifest.counts.get("rejected") else 0


def as_asked(report: Any) -> str:
    """A report as text, or with `as_json` as JSON."""
    return json.dumps(report.to_dict(), indent=2, ensure_ascii=False) if report.as_json else report.text()


def load(spec: str) -> Any:
    """Import `module:name`."""
    module, _, name = spec.partition(":")
    return getattr(importlib.import_module(module), name)
