import logging
import sys
from types import SimpleNamespace

import pytest

from cirray.core.errors import ConfigError, unknown_name
from cirray.core.progress import progress
from cirray.core.registry import Registry
from cirray.core.seeding import derive_seed, numpy_generator
from cirray.types import stable_id


def test_an_unknown_name_answers_with_the_known_ones_and_a_suggestion():
    registry: Registry[int] = Registry("policy")
    registry.register("uniform")(1)
    assert registry.get("uniform") == 1
    with pytest.raises(ConfigError, match="'unifrom'. Did you mean 'uniform'"):
        registry.get("unifrom")
    with pytest.raises(ConfigError, match="twice"):
        registry.register("uniform")(2)
    assert "(none)" in unknown_name("thing", "x", [])


def test_a_registry_imports_its_modules_on_a_miss_or_when_names_are_listed_and_not_before(tmp_path, monkeypatch):
    """A module that cannot be imported says so every time, and is read again once it is mended."""
    monkeypatch.syspath_prepend(str(tmp_path))
    asked, listed, broken = (Registry("policy", [f"filed_{name}"]) for name in ("asked", "listed", "broken"))
    monkeypatch.setitem(sys.modules, "shelf", SimpleNamespace(asked=asked, listed=listed, broken=broken))
    for name, registry in vars(sys.modules["shelf"]).items():
        (tmp_path / f"filed_{name}.py").write_text(f"import shelf\nshelf.{name}.register('late')(1)\n")
        registry.register("here")(0)
        assert registry.get("here") == 0 and f"filed_{name}" not in sys.modules
    assert asked.get("late") == asked.get("late") == 1
    assert listed.names() == list(listed) == ["here", "late"]
    good = (tmp_path / "filed_broken.py").read_text()
    (tmp_path / "filed_broken.py").write_text("import no_such_library\n")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_library"):
            broken.get("late")
    assert broken.get("here") == 0
    (tmp_path / "filed_broken.py").write_text(good)
    assert broken.get("late") == 1


def test_a_module_that_filed_its_items_and_then_failed_files_them_again_and_others_may_not(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    registry: Registry[object] = Registry("policy", ["filed_halfway"])
    monkeypatch.setitem(sys.modules, "half_shelf", SimpleNamespace(registry=registry))
    lines = """
from half_shelf import registry
registry.register("line")(lambda: 1)
@registry.register("function")
def function(): ...
@registry.register("class")
class Item: ...
"""
    module = tmp_path / "filed_halfway.py"
    module.write_text(lines + "import no_such_library\n")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError):
            registry.get("absent")
    module.write_text(lines)
    assert registry.names() == ["class", "function", "line"]
    for name, other in (("line", lambda: 2), ("function", derive_seed), ("class", SimpleNamespace)):
        with pytest.raises(ConfigError, match=f"'{name}' is registered twice"):
            registry.register(name)(other)


def test_seeds_differ_by_purpose_and_are_stable():
    assert derive_seed(0, "a") != derive_seed(0, "b") != derive_seed(1, "a")
    assert derive_seed(7, "pool", 3) == derive_seed(7, "pool", 3)
    assert numpy_generator(0, "x").integers(1000) == numpy_generator(0, "x").integers(1000)


def test_ids_do_not_collide_over_part_borders():
    assert stable_id("a", "bc") != stable_id("ab", "c")
    assert stable_id("a", "b") == stable_id("a", "b")


def test_progress_off_a_terminal_ends_with_one_line(caplog):
    logging.getLogger("cirray").propagate = True
    with caplog.at_level(logging.INFO, logger="cirray"), progress("work", 3, every_s=100) as advance:
        advance(2)
        advance(1, "note")
    assert "work: 3/3 it" in caplog.text
