"""Values remember whether somebody gave them, at any depth, and a preset fills what nobody gave."""

from collections.abc import Mapping
from typing import Any

import pytest

from cirray.core.config import Config, from_presets, given, load_config, validate
from cirray.data.config import CircoConfig, DataConfig, FashionIQConfig
from cirray.pipelines.training.config import FinetuneRun, TrainRun, TuneRun

PSEUDO = "data.preset=pseudo_word"
FASHION = {"format": "fashioniq"}
OWN = {**FASHION, "fashioniq": {"captions": "clip4cir"}}


class Leaf(Config):
    rate: float = 0.5
    name: str = ""


class Node(Config):
    leaf: Leaf = Leaf(rate=2.0)
    other: Leaf | None = Leaf(name="x")
    leaves: tuple[Leaf, ...] = (Leaf(name="default"),)
    by_name: dict[str, Leaf] = {"d": Leaf(name="default")}


class Root(Config):
    node: Node = Node(leaf=Leaf(name="place"))
    maybe: Node | None = None
    free: dict[str, Any] = {}


def said(config) -> Any:
    """What every section remembers, as a tree."""
    if isinstance(config, Config):
        return {name: said(getattr(config, name)) for name in sorted(config.model_fields_set)}
    if isinstance(config, Mapping):
        return {name: said(item) for name, item in config.items()}
    return [said(item) for item in config] if isinstance(config, tuple) else ...


def every_section(config):
    if isinstance(config, Config):
        yield config
        values = config.__dict__.values()
    else:
        values = config.values() if isinstance(config, dict) else config if isinstance(config, tuple) else ()
    for value in values:
        yield from every_section(value)


@pytest.mark.parametrize("cls", [Root, FinetuneRun, TuneRun, DataConfig])
def test_in_a_default_nothing_was_given(cls):
    assert all(not section.model_fields_set for section in every_section(load_config(cls)))
    assert load_config(cls) == cls()


@pytest.mark.parametrize(
    "overrides, tree",
    [
        (["node.leaf.rate=3"], {"node": {"leaf": {"rate": ...}}}),
        (["node.other.name=y"], {"node": {"other": {"name": ...}}}),
        (["maybe.leaf.name=y"], {"maybe": {"leaf": {"name": ...}}}),
        (["node.leaves=[{rate: 1}, {}]"], {"node": {"leaves": [{"rate": ...}, {}]}}),
        (["node.by_name.a.rate=1"], {"node": {"by_name": {"a": {"rate": ...}}}}),
        (["node={}"], {"node": {}}),
        (["free.a.b=1"], {"free": {"a": {"b": ...}}}),
    ],
)
def test_every_section_holds_what_a_person_wrote_and_nothing_else(overrides, tree):
    assert said(load_config(Root, None, overrides)) == tree


def test_a_default_of_the_place_stands_and_was_not_given():
    config = load_config(Root, None, ["node.leaf.rate=3"])
    assert (config.node.leaf.rate, config.node.leaf.name) == (3.0, "place")
    assert given(config, "node.leaf.rate") and not given(config, "node.leaf.name") and given(config, "node.leaf")
    run = load_config(FinetuneRun, None, ["training.steps=5"])
    assert run.training.objective == "ptha" and not given(run, "training.objective") and given(run, "training.steps")


def test_an_explicit_value_equal_to_the_default_was_given():
    config = load_config(Root, {"node": {"leaf": {"rate": 0.5}}, "free": {"a": {"b": 1}}, "maybe": {"leaves": [{}]}})
    for path in ("node.leaf.rate", "free.a.b", "maybe.leaves.0"):
        assert given(config, path)
    for path in (
        "node.leaf.name",
        "free.b",
        "free.a.b.c",
        "maybe.leaves.1",
        "maybe.leaves.0.rate",
        "nothing",
        "maybe.x",
    ):
        assert not given(config, path)


CAPTIONS = {
    "file": ({"data": {**OWN, "preset": "pseudo_word"}}, []),
    "command line over the file's preset": (
        {"data": {**FASHION, "preset": "pseudo_word"}}, ["data.fashioniq.captions=clip4cir"]
    ),
    "command line": ({"data": FASHION}, ["data.fashioniq.captions=clip4cir", PSEUDO]),
    "a preset over the file's value": ({"data": OWN}, [PSEUDO]),
    "two files": ([{"data": OWN}, {"data": {"preset": "pseudo_word"}}], []),
}  # fmt: skip


@pytest.mark.parametrize(("source", "overrides"), CAPTIONS.values(), ids=CAPTIONS)
@pytest.mark.parametrize("cls", [TrainRun, FinetuneRun])
def test_a_preset_never_overrides_a_value_that_was_given_though_it_is_the_default(cls, source, overrides):
    fashioniq = load_config(cls, source, overrides).data.fashioniq
    assert fashioniq.captions == "clip4cir" == FashionIQConfig().captions
    assert fashioniq.model_fields_set == {"captions"}


def test_a_preset_fills_what_was_not_given_and_says_so_in_the_resolved_tree():
    run = load_config(FinetuneRun, None, [PSEUDO, "data.format=fashioniq", "data.fashioniq.root=x"])
    assert run.data.fashioniq.captions == "both_averaged" and not given(run, "data.fashioniq.captions")
    assert run.to_dict()["data"]["fashioniq"]["captions"] == "both_averaged"
    assert "captions" not in run.given()["data"]["fashioniq"]
    assert validate(FinetuneRun, run.to_dict()) == run == validate(FinetuneRun, run.given())


def test_a_preset_reaches_sections_in_lists_sweeps_and_calls():
    guard = "base.guard=[{format: circo, preset: ptha, circo: {text: with_concept}}]"
    run = load_config(TuneRun, None, ["base.data.preset=ptha", "base.data.format=circo", guard])
    assert run.base.data.circo.reference_rule == "remove"
    assert run.base.guard[0].circo == CircoConfig(reference_rule="remove", text="with_concept")
    assert from_presets(run.base)[("guard", "0", "circo", "reference_rule")] == "ptha"
    made = DataConfig(format="circo", preset="ptha", circo=CircoConfig(reference_rule="keep", root="x"))
    assert (made.circo.reference_rule, made.circo.model_fields_set) == ("keep", {"reference_rule", "root"})
    assert DataConfig(format="circo", preset="ptha", circo=CircoConfig(root="x")).circo.reference_rule == "remove"


def test_a_preset_that_was_filled_in_is_told_value_by_value():
    run = load_config(FinetuneRun, {"data": {**OWN, "preset": "pseudo_word"}}, ["data.fashioniq.gallery=val_split"])
    assert from_presets(run) == {("data", "fashioniq", "reference_rule"): "pseudo_word"}
    assert from_presets(load_config(FinetuneRun)) == {}
