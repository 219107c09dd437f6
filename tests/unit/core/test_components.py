"""A component's settings are fields of its own class, wherever a configuration names it."""

import importlib
import sys
from typing import Annotated, Any

import pytest
from pydantic import Field, SerializeAsAny

from cirray.core.components import Component, SetOf
from cirray.core.config import Config, load_config, validate
from cirray.core.errors import ConfigError
from cirray.core.registry import Registry
from cirray.core.trees import merged


class Weighted(Config):
    weight: float = 1.0


class Deep(Config):
    distance: str = "mse"


class TwoHop(Weighted):
    distance: str = "mse"
    deep: Deep = Deep()


class Paired(Config):
    ratio: float = Field(1.0, ge=0)


TERMS: Registry[Any] = Registry("loss term", [], {"two_hop": TwoHop, "rtc": Weighted}, Weighted)
MIXERS: Registry[Any] = Registry("mixing", [], {"concat": Config, "paired": Paired})


class Mixing(Component):
    registry = MIXERS
    kind: str = "concat"


class Training(Config):
    mixing: Mixing = Mixing()
    terms: Annotated[dict[str, SerializeAsAny[Config]], SetOf(TERMS)] = {}


class Run(Config):
    training: Training = Training(mixing=Mixing(kind="paired", settings=Paired(ratio=3)))


def training(*overrides, source=None):
    return load_config(Training, source, overrides)


def test_settings_become_the_class_that_the_component_registered():
    config = training(source={"mixing": {"kind": "paired", "settings": {"ratio": 2}}, "terms": {"two_hop": None}})
    assert config.mixing.settings == Paired(ratio=2.0) and config.terms == {"two_hop": TwoHop()}
    assert training().mixing.settings == Config()


def test_a_kind_alone_and_a_bare_weight_are_short_forms():
    config = training("mixing=paired", "terms.two_hop=0.4")
    assert config.mixing == Mixing(kind="paired") and config.terms["two_hop"] == TwoHop(weight=0.4)


def test_more_can_be_laid_over_short_forms():
    config = training(
        "mixing.settings.ratio=2",
        "terms.two_hop.distance=cosine",
        source={"mixing": "paired", "terms": {"two_hop": 0.4}},
    )
    assert config.mixing.settings.ratio == 2 and config.terms["two_hop"] == TwoHop(weight=0.4, distance="cosine")
    whole = {"mixing": {"kind": "paired", "settings": {"ratio": 2}}, "terms": {"two_hop": {"distance": "cosine"}}}
    config = training("mixing=paired", "terms.two_hop=0.4", source=whole)
    assert config.mixing.settings.ratio == 2 and config.terms["two_hop"] == TwoHop(weight=0.4, distance="cosine")
    assert merged({"a": "paired"}, {"a": {"settings": {"ratio": 2}}}) == {
        "a": {"kind": "paired", "settings": {"ratio": 2}}
    }


def test_settings_of_another_kind_do_not_outlive_it():
    assert load_config(Run, None, ["training.mixing.kind=concat"]).training.mixing == Mixing()
    assert load_config(Run, None, ["training.mixing=concat"]).training.mixing == Mixing()
    file = {"mixing": {"kind": "paired", "settings": {"ratio": 2}}}
    assert training("mixing.kind=concat", source=file).mixing == Mixing()
    assert load_config(Run).training.mixing.settings.ratio == 3


def test_plain_values_hold_a_components_settings_and_build_it_again():
    config = training("mixing=paired", "terms.two_hop.distance=cosine")
    assert config.to_dict()["mixing"] == {"kind": "paired", "settings": {"ratio": 1.0}}
    assert config.to_dict()["terms"]["two_hop"]["distance"] == "cosine"
    assert validate(Training, config.to_dict()) == config
    assert config.given() == {"mixing": {"kind": "paired"}, "terms": {"two_hop": {"distance": "cosine"}}}


FAULTS = {
    "training.terms.two_hop.distanse=mse": ["Did you mean 'training.terms.two_hop.distance'?"],
    "training.terms.two_hop.deep.distanse=mse": ["'training.terms.two_hop.deep'", "two_hop.deep.distance'?"],
    "training.mixing.settings.ratoi=2": ["'training.mixing.settings.ratoi'", "'training.mixing.settings.ratio'?"],
    "training.mixing.settings.ratio=-1": ["'training.mixing.settings.ratio' has the value -1", "equal to 0"],
    "training.mixing=pared": ["'training.mixing.kind'", "Unknown mixing 'pared'. Did you mean 'paired'?"],
    "training.terms.two_hopp=1": ["'training.terms.two_hopp'", "Unknown loss term", "mean 'two_hop'?"],
    "training.terms.two_hop=heavy": ["'training.terms.two_hop'", "'heavy'"],
}


@pytest.mark.parametrize(("override", "words"), FAULTS.items())
def test_what_does_not_fit_is_named_with_its_path_and_the_near_names(override, words):
    with pytest.raises(ConfigError) as error:
        load_config(Run, None, [override])
    assert all(word in str(error.value) for word in words), str(error.value)


def test_every_fault_of_a_set_is_told_at_once():
    with pytest.raises(ConfigError, match=r"weigth.*two_hopp"):
        training("terms.two_hop.weigth=1", "terms.two_hopp=1")


def test_a_component_registers_its_settings_with_itself():
    registry = Registry("loss term", base=Weighted)
    registry.register("mine", settings=TwoHop)(object())
    registry.register("plain")(object())
    assert registry.settings("mine") is TwoHop and registry.settings("plain") is Weighted
    assert registry.every_settings() == {"mine": TwoHop, "plain": Weighted}
    with pytest.raises(ConfigError, match="must derive from Weighted"):
        registry.register("other", settings=Paired)


def test_an_item_s_own_module_alone_is_imported_and_all_of_them_for_a_name_that_is_elsewhere(tmp_path, monkeypatch):
    package = tmp_path / "shelf_of_items"
    package.mkdir()
    (package / "__init__.py").write_text("from cirray.core.registry import Registry\n")
    for name, items in {"red": ("red",), "blue": ("blue", "navy")}.items():
        lines = [f"ITEMS.register({item!r})({item!r})" for item in items]
        (package / f"{name}.py").write_text("\n".join(["from shelf_of_items import ITEMS", *lines]))
    monkeypatch.syspath_prepend(tmp_path)
    shelf = importlib.import_module("shelf_of_items")
    shelf.ITEMS = Registry("item", ["shelf_of_items.red", "shelf_of_items.blue"])
    assert shelf.ITEMS.get("red") == "red" and "shelf_of_items.blue" not in sys.modules
    assert shelf.ITEMS.get("navy") == "navy" and shelf.ITEMS.names() == ["blue", "navy", "red"]
