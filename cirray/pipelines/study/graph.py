"""A study's stages as a graph of runs: references resolved, variables filled in, equal stages shared."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

from cirray.core import storage
from cirray.core.config import Config, load
from cirray.core.errors import ConfigError, unknown_name
from cirray.core.places import ROOT
from cirray.core.trees import Layer, merged
from cirray.pipelines.cluster.schedule import Node
from cirray.pipelines.study.config import StudyRun

Find = Callable[[str], tuple[type[Config], str]]
"""Verb -> (its config class, `module:function` that runs it)."""
Assignment = Mapping[str, Any]


@dataclass
class Graph:
    """The runs of one seed, each after its inputs."""

    run: StudyRun
    seed: int
    find: Find
    nodes: dict[str, Node] = field(default_factory=dict)
    trail: tuple[str, ...] = ()
    known: dict[str, frozenset[str]] = field(default_factory=dict)
    """Cache of `needs`, by stage."""

    def add(self, stage: str, values: Assignment | None = None) -> str:
        """Add a stage and its inputs; returns its name, with the variables that differ from their defaults.

        Args:
            stage: name in the study.
            values: variables that differ from their defaults.

        Raises:
            ConfigError: for an unknown stage or variable, a cycle, or unknown fields.
        """
        name = self.name(stage, values)
        if name in self.nodes:
            return name
        spec = self.run.stages[stage]
        if stage in self.trail:
            circle = " -> ".join([*self.trail[self.trail.index(stage) :], stage])
            raise ConfigError(f"Stages {circle} of the study read each other; break the circle.", ("stages", stage))
        inner = replace(self, trail=(*self.trail, stage))
        after = tuple(dict.fromkeys(inner.add(other, values) for other in references(self._fields(stage))))
        try:
            config_class, function = self.find(spec.verb)
            layers = [Layer(self.fill(tree, values), origin) for origin, tree in self._layers(stage).items()]
            own = {"out": self.place(stage, values), **self._workers(config_class, self._fields(stage).get("ray"))}
            root = {ROOT: seed_root(self.run, self.seed)} if ROOT in config_class.model_fields else {}
            config = load(config_class, [Layer(root), *layers, Layer(own)]).config
        except ConfigError as error:
            raise ConfigError(f"Stage {stage!r} of the study: {error}", ("stages", stage)) from None
        self.nodes[name] = Node(name, function, config, after, spec.slots)
        return name

    def name(self, stage: str, values: Assignment | None = None) -> str:
        """`stage`, or `stage@variable=value` if a variable that it depends on differs from its default."""
        needed = self.needs(stage)
        odd = {key: value for key, value in (values or {}).items() if value != self.run.variables.get(key)}
        told = [f"{key}={odd[key]}" for key in sorted(odd) if key in needed]
        return "@".join([stage, ",".join(told)]) if told else stage

    def place(self, stage: str, values: Assignment | None = None) -> str:
        """Artifact of a stage."""
        return storage.join(seed_root(self.run, self.seed), self.name(stage, values))

    def needs(self, stage: str, trail: tuple[str, ...] = ()) -> frozenset[str]:
        """Variables that a stage or its inputs depend on.

        Raises:
            ConfigError: for an unknown stage, naming the one that reads it.
        """
        if stage not in self.run.stages:
            reader = f"Stage {trail[-1]!r} reads '@{stage}'. " if trail else ""
            way = ("stages", trail[-1]) if trail else ()
            raise ConfigError(reader + unknown_name("stage of the study", stage, self.run.stages), way)
        if stage in trail:
            return frozenset()
        if stage not in self.known:
            fields = self._fields(stage)
            inner = (self.needs(other, (*trail, stage)) for other in references(fields))
            self.known[stage] = frozenset(variables(fields)).union(*inner)
        return self.known[stage]

    def fill(self, tree: Any, values: Assignment | None = None) -> Any:
        """Plain values with `@stage` and `$variable` replaced.

        Raises:
            ConfigError: for an unknown variable.
        """
        known = {**self.run.variables, **(values or {}), "seed": self.seed}
        if isinstance(tree, Mapping):
            return {key: self.fill(value, values) for key, value in tree.items()}
        if isinstance(tree, list | tuple):
            return [self.fill(value, values) for value in tree]
        if isinstance(tree, str) and tree.startswith("@"):
            stage, slash, rest = tree[1:].partition("/")
            return storage.join(self.place(stage, values), rest) if slash else self.place(stage, values)
        if isinstance(tree, str) and tree.startswith("$"):
            if tree[1:] not in known:
                raise ConfigError(unknown_name("variable of the study", tree[1:], known))
            return known[tree[1:]]
        return tree

    def closure(self, name: str) -> frozenset[str]:
        """Names of a run and all its inputs."""
        node = self.nodes[name]
        return frozenset({name}).union(*(self.closure(other) for other in node.after))

    def _workers(self, config_class: type[Config], said: Any) -> dict[str, Any]:
        """Training stages run in their own process unless they say otherwise, as many run in parallel."""
        field, given = config_class.model_fields.get("ray"), dict(self.fill(said or {}))
        if field is None or (field.default is None and not given):
            return {}
        usual = {"enabled": False} if "training" in config_class.model_fields else {}
        return {"ray": {**usual, **given, **({} if self.run.ray else {"enabled": False})}}

    def _fields(self, stage: str) -> dict[str, Any]:
        """A stage's entry in the study."""
        return reduce(merged, self._layers(stage).values(), {})

    def _layers(self, stage: str) -> dict[str, dict[str, Any]]:
        """The fields of a stage by their place in the study: the template's, then its own."""
        spec = self.run.stages[stage]
        template = {f"templates.{spec.like}": self.run.templates[spec.like]} if spec.like else {}
        return {**template, f"stages.{stage}.fields": spec.fields}


def seed_root(run: StudyRun, seed: int) -> str:
    """Folder of one seed's artifacts."""
    return storage.join(run.root, f"seed-{seed}") if run.per_seed else run.root


def references(tree: Any) -> list[str]:
    """Stages named by `@NAME` anywhere in plain values, each once."""
    return list(dict.fromkeys(text[1:].partition("/")[0] for text in _texts(tree) if text.startswith("@")))


def variables(tree: Any) -> list[str]:
    """Variables named by `$NAME`, each once, except the seed."""
    return [name for name in dict.fromkeys(text[1:] for text in _texts(tree) if text.startswith("$")) if name != "seed"]


def _texts(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _texts(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _texts(value)
