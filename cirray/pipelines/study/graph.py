"""A study's stages as a graph of runs: what each reads, variables filled in, equal stages shared."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

from cirray.core import storage
from cirray.core.config import Config, ConfigT, load
from cirray.core.errors import ConfigError, unknown_name
from cirray.core.places import ROOT
from cirray.core.trees import Layer, differing, merged
from cirray.pipelines.cluster.schedule import Node
from cirray.pipelines.study.config import StudyRun

Find = Callable[[str], tuple[type[Config], str]]
"""Verb -> (its config class, `module:function` that runs it)."""
Assignment = Mapping[str, Any]
_DRAFT = "stage:"
"""Root below which a configuration is resolved to see which artifacts it names."""


@dataclass
class Graph:
    """The runs of one seed, in an order in which each comes after what it reads.

    Every stage has the seed's folder as its root: `@NAME`, written in the study or a field's default, is the artifact
    of the stage of that name.
    """

    run: StudyRun
    seed: int
    find: Find
    nodes: dict[str, Node] = field(default_factory=dict)
    trail: tuple[str, ...] = ()
    read: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What `reads` found, by stage."""
    known: dict[str, frozenset[str]] = field(default_factory=dict)
    """What `needs` found, by stage."""

    def add(self, stage: str, values: Assignment | None = None) -> str:
        """Add a stage and all it builds on; returns its name, which says the variables that differ from their default.

        Raises ConfigError for an unknown stage or variable, a circle, or fields that the verb does not take.
        """
        name = self.name(stage, values)
        if name in self.nodes:
            return name
        if stage in self.trail:
            circle = " -> ".join([*self.trail[self.trail.index(stage) :], stage])
            raise ConfigError(f"Stages {circle} of the study read each other; break the circle.", ("stages", stage))
        inner = replace(self, trail=(*self.trail, stage))
        after = tuple(dict.fromkeys(inner.add(other, values) for other in self.reads(stage)))
        with _of_stage(stage):
            config_class, function = self.find(self.run.stages[stage].verb)
            layers = [*self._layers(stage), Layer({"out": self.place(stage, values)})]
            config = self.config(config_class, layers, values)
        self.nodes[name] = Node(name, function, config, after, self.run.stages[stage].slots)
        return name

    def config(self, config_class: type[ConfigT], layers: Sequence[Layer], values: Assignment | None = None) -> ConfigT:
        """A configuration of this seed, every `@NAME` in it the artifact of the stage as it is with these values."""
        filled = [Layer(self.fill(layer.tree, values), layer.origin) for layer in layers]
        draft = self._draft(config_class, layers, values)
        over = differing(self._named(draft, values), self._named(draft, {}))
        root = Layer({ROOT: seed_root(self.run, self.seed)})
        return load(config_class, [root, *filled, Layer(over)]).config

    def artifacts(self, config_class: type[Config], layers: Sequence[Layer]) -> tuple[str, ...]:
        """Stages whose artifacts a configuration names, where it is given or by default."""
        draft = self._draft(config_class, layers)
        usual = [text.split("/")[1] for text in _texts(draft) if text.startswith(f"{_DRAFT}/")]
        return tuple(
            dict.fromkeys([*references(_fields(layers)), *(name for name in usual if name in self.run.stages)])
        )

    def reads(self, stage: str) -> tuple[str, ...]:
        """Stages that a stage reads."""
        if stage not in self.read:
            with _of_stage(stage):
                config_class, _ = self.find(self.run.stages[stage].verb)
                self.read[stage] = self.artifacts(config_class, self._layers(stage))
        return self.read[stage]

    def name(self, stage: str, values: Assignment | None = None) -> str:
        """`stage`, or `stage@variable=value` where a variable on its way differs from the default."""
        needed = self.needs(stage)
        odd = {key: value for key, value in (values or {}).items() if value != self.run.variables.get(key)}
        told = [f"{key}={odd[key]}" for key in sorted(odd) if key in needed]
        return "@".join([stage, ",".join(told)]) if told else stage

    def place(self, stage: str, values: Assignment | None = None) -> str:
        """Artifact of a stage."""
        return storage.join(seed_root(self.run, self.seed), self.name(stage, values))

    def needs(self, stage: str, trail: tuple[str, ...] = ()) -> frozenset[str]:
        """Variables that a stage or anything it builds on depends on.

        Raises ConfigError for an unknown stage, with the one that reads it.
        """
        if stage not in self.run.stages:
            reader = f"Stage {trail[-1]!r} reads '@{stage}'. " if trail else ""
            way = ("stages", trail[-1]) if trail else ()
            raise ConfigError(reader + unknown_name("stage of the study", stage, self.run.stages), way)
        if stage in trail:
            return frozenset()
        if stage not in self.known:
            inner = (self.needs(other, (*trail, stage)) for other in self.reads(stage))
            self.known[stage] = frozenset(variables(_fields(self._layers(stage)))).union(*inner)
        return self.known[stage]

    def fill(self, tree: Any, values: Assignment | None = None) -> Any:
        """Plain values with every `$variable` replaced. Raises ConfigError: for an unknown variable."""
        known = {**self.run.variables, **(values or {}), "seed": self.seed}

        def value(text: str) -> Any:
            if text.startswith("$") and text[1:] not in known:
                raise ConfigError(unknown_name("variable of the study", text[1:], known))
            return known[text[1:]] if text.startswith("$") else text

        return _mapped(tree, value)

    def closure(self, name: str) -> frozenset[str]:
        """Names of a run and of all it builds on."""
        node = self.nodes[name]
        return frozenset({name}).union(*(self.closure(other) for other in node.after))

    def _draft(self, config_class: type[Config], layers: Sequence[Layer], values: Assignment | None = None) -> Any:
        """Plain values of a configuration in which an `@NAME` begins with `_DRAFT`, but for where it writes."""
        filled = [Layer(self.fill(layer.tree, values), layer.origin) for layer in layers]
        return load(config_class, [Layer({ROOT: _DRAFT}), *filled, Layer({"out": "-"})]).config.to_dict()

    def _named(self, draft: Any, values: Assignment | None) -> Any:
        """A draft with `@NAME` as these values name it."""

        def named(text: str) -> str:
            stage, slash, rest = text.removeprefix(f"{_DRAFT}/").partition("/")
            if not text.startswith(f"{_DRAFT}/") or stage not in self.run.stages:
                return text
            return f"@{self.name(stage, values)}{slash}{rest}"

        return _mapped(draft, named)

    def _layers(self, stage: str) -> list[Layer]:
        """What the study says of a stage: its template's fields, then its own.

        Many runs stand side by side, so one that trains does it in its own process unless it says otherwise.
        """
        spec = self.run.stages[stage]
        config_class, _ = self.find(spec.verb)
        layers = [Layer(self.run.templates[spec.like], f"templates.{spec.like}")] if spec.like else []
        layers += [Layer(spec.fields, f"stages.{stage}.fields")]
        field = config_class.model_fields.get("ray")
        if field is None or (field.default is None and not any("ray" in layer.tree for layer in layers)):
            return layers
        alone = [Layer({"ray": {"enabled": False}})]
        usual = alone if "training" in config_class.model_fields else []
        return [*usual, *layers, *([] if self.run.ray else alone)]


def seed_root(run: StudyRun, seed: int) -> str:
    """Folder of one seed's artifacts."""
    return storage.join(run.root, *([f"seed-{seed}"] if run.per_seed else []))


def references(tree: Any) -> list[str]:
    """Stages named by `@NAME` anywhere in plain values, each once."""
    return list(dict.fromkeys(text[1:].partition("/")[0] for text in _texts(tree) if text.startswith("@")))


def variables(tree: Any) -> list[str]:
    """Variables named by `$NAME`, each once; the seed is none."""
    return [name for name in dict.fromkeys(text[1:] for text in _texts(tree) if text.startswith("$")) if name != "seed"]


def _fields(layers: Sequence[Layer]) -> dict[str, Any]:
    return reduce(merged, (layer.tree for layer in layers), {})


@contextmanager
def _of_stage(stage: str) -> Iterator[None]:
    """Inside, errors begin with the stage."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"Stage {stage!r} of the study: {error}", ("stages", stage)) from None


def _mapped(tree: Any, change: Callable[[str], Any]) -> Any:
    """Plain values with every text changed."""
    if isinstance(tree, Mapping):
        return {key: _mapped(value, change) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_mapped(value, change) for value in tree]
    return change(tree) if isinstance(tree, str) else tree


def _texts(tree: Any) -> list[str]:
    """Every text in plain values."""
    found: list[str] = []
    _mapped(tree, found.append)
    return found
