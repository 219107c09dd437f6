"""`--help` opens a section, a field, everything; a component's settings appear with its kind."""

from typing import Annotated, Any

import pytest
from pydantic import Field, SerializeAsAny

from cirray.cli.help import verb_help
from cirray.cli.main import main
from cirray.cli.tree import find, roots, walk
from cirray.cli.verb import Verb, verb
from cirray.cli.words import asked
from cirray.core.components import Component, SetOf
from cirray.core.config import Config
from cirray.core.fields import Common, Effort, Place
from cirray.core.registry import Registry


class Weighted(Config):
    weight: float = 1.0
    """Weight in the sum."""


class TwoHop(Weighted):
    """Two hops."""

    distance: str = "mse"
    """How far is measured."""


class Paired(Config):
    ratio: float = Field(1.0, ge=0, le=16)
    """Pseudo rows for each real one. Any share will do."""


TERMS: Registry[Any] = Registry("loss term", [], {"two_hop": TwoHop, "rtc": Weighted}, Weighted)
MIXERS: Registry[Any] = Registry("mixing", [], {"concat": Config, "paired": Paired})


class Mixing(Component):
    """How rows share a batch."""

    registry = MIXERS
    kind: str = "concat"
    """Which way."""


class Training(Config):
    mixing: Mixing = Mixing()
    terms: Annotated[dict[str, SerializeAsAny[Config]], SetOf(TERMS)] = {}
    """Loss terms."""
    lr: Common[float] = Field(1e-3, gt=0)
    """Peak rate, e.g. 0.1. Paper: more."""
    rare: int = 3
    """Seldom changed."""


class Run(Config):
    training: Training = Training(lr=0.5, mixing=Mixing(kind="paired", settings=Paired(ratio=3)))
    cluster: Effort[Training] = Training()
    texts: tuple[Place, ...] = ("@texts",)
    """Artifacts. More."""
    pairs: tuple[tuple[int, float | None], ...] = ()
    """Pairs."""


class Toy(Verb):
    def config_class(self):
        return Run


TOY = Toy("toy", "tools", "does nothing", config="", run="", example="cirray toy", switches={"--json": "as_json=true"})


def line(text, start):
    found = [" ".join(item.split()) for item in text.splitlines() if item.strip().startswith(start)]
    assert len(found) == 1, found
    return found[0]


def test_the_short_help_shows_own_fields_common_ones_of_sections_and_kinds_with_the_default_of_their_place():
    text = verb_help(TOY)
    assert line(text, "training.lr") == "training.lr = 0.5 number > 0 Peak rate, e.g. 0.1"
    assert line(text, "training.mixing.kind") == "training.mixing.kind = paired {concat, paired} Which way"
    assert line(text, "texts") == "texts = [@texts] list of paths Artifacts"
    assert line(text, "pairs") == "pairs = [] list of [integer, number or null] Pairs"
    assert line(text, "--json") == "--json the same as as_json=true"
    assert "training.rare" not in text
    assert text.index("Where things lie") < text.index("texts =") < text.index("(changes no result)")
    assert text.index("(changes no result)") < text.index("cluster.lr =") < text.index("Sections")


def test_a_section_of_one_component_shows_the_settings_of_each_kind_below_its_name():
    text = verb_help(TOY, "training.mixing")
    kind, settings = text.index("with kind=paired:"), text.index("training.mixing.settings.ratio = 3.0")
    assert text.startswith("cirray toy, training.mixing: How rows share a batch.") and kind < settings
    assert "number in [0, 16]" in text and "Any share will do." in text
    assert verb_help(TOY, "training.mixing.settings") == text


def test_a_section_of_a_set_of_components_shows_the_settings_of_each_below_its_meaning():
    text = verb_help(TOY, "training.terms")
    assert line(text, "training.terms =") == "training.terms = {} settings by name"
    assert line(text, "training.terms.two_hop.distance").endswith("= mse text How far is measured.")
    assert line(text, "training.terms.rtc.weight").endswith("= 1.0 number Weight in the sum.")
    assert text.index("two_hop: Two hops.") < text.index("training.terms.two_hop.weight")


def test_a_section_with_a_component_in_it_shows_its_kind():
    text = verb_help(TOY, "training")
    assert line(text, "training.mixing.kind") == "training.mixing.kind = paired {concat, paired} Which way."
    assert "training.mixing.settings.ratio" not in text and line(text, "training.mixing  ").startswith(
        "training.mixing 2"
    )


def test_help_all_enters_components_too():
    text = verb_help(TOY, "all")
    wanted = ["training.rare", "training.mixing.settings.ratio", "training.terms.two_hop.distance", "cluster.rare"]
    assert all(f"{path} = " in text for path in wanted)
    assert line(text, "cluster.rare").endswith("Seldom changed. (Changes no result.)")


def test_a_path_finds_its_field_and_nothing_else():
    paths = [node.path for node in walk(roots(Run))]
    assert all(find(Run, path).path == path for path in paths)
    assert (
        find(Run, "training.mixed") is None and find(Run, "training.lr.more") is None and find(Run, "trainin") is None
    )


@pytest.mark.parametrize("words", [["--help", "training.optimizer"], ["--help=training.optimizer"]])
def test_help_opens_a_section_and_shows_choices(words, capsys):
    assert main(["finetune", *words]) == 0
    text = capsys.readouterr().out
    assert "training.optimizer.schedule = one_cycle  {one_cycle, cosine, constant, step}" in text
    assert "data.format" not in text


def test_a_field_alone_is_told_in_full(capsys):
    assert main(["finetune", "--help", "training.optimizer.lr"]) == 0
    assert capsys.readouterr().out.strip() == "training.optimizer.lr = 0.001  number > 0  Peak learning rate."


@pytest.mark.parametrize(
    "path, near", [("training.optimiser", "training.optimizer"), ("dta", "data"), ("training.optimizer.lrr", ".lr")]
)
def test_an_unknown_section_is_answered_with_the_near_one(path, near, capsys):
    assert main(["finetune", "--help", path]) == 2
    error = capsys.readouterr().err
    assert f"{path!r}. Did you mean" in error and near in error and "cirray finetune" in error


def test_help_shows_the_defaults_of_the_verb_and_not_those_of_the_section_s_class():
    texts = {name: verb_help(verb(name), "training.objective") for name in ("pretrain", "finetune")}
    assert "objective = pretrain" in texts["pretrain"] and "objective = ptha" in texts["finetune"]


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--help"], ""), (["-h"], ""), (["--help", "data"], "data"), (["--help=data"], "data"), (["x=1"], None),
        (["run.yaml", "--help", "x=1"], ""), (["--help", "run.yaml"], ""), (["--help", "--restart"], ""),
    ],
)  # fmt: skip
def test_what_follows_help_is_a_section_unless_it_is_something_else(words, expected):
    assert asked(words) == expected
