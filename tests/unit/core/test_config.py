import pytest
import yaml

from cirray.core.config import Config, load_config
from cirray.core.errors import ConfigError
from cirray.core.trees import merged, parse_assignment


class Inner(Config):
    rate: float = 0.1
    name: str = "a"


class Outer(Config):
    inner: Inner = Inner()
    sizes: list[int] = [1, 2]
    path: str = "x"


def test_overrides_apply_after_the_file_and_scientific_notation_is_a_number(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("inner:\n  rate: 2e-3\n")
    assert load_config(Outer, path).inner.rate == 0.002
    config = load_config(Outer, path, ["inner.rate=1e-5", "sizes=[3]", "path=a=b"])
    assert (config.inner.rate, config.sizes, config.path) == (1e-5, [3], "a=b")


class Specialised(Config):
    inner: Inner = Inner(rate=0.7, name="special")
    outer: Outer = Outer(inner=Inner(rate=0.9))


def test_a_section_given_in_part_keeps_the_defaults_of_its_place():
    config = load_config(Specialised, None, ["inner.name=c", "outer.inner.name=d"])
    assert (config.inner.rate, config.inner.name) == (0.7, "c")
    assert (config.outer.inner.rate, config.outer.inner.name, config.outer.sizes) == (0.9, "d", [1, 2])


def test_mappings_are_merged_leaf_by_leaf_and_stay_as_they_were():
    base = {"x": {"y": 1, "z": {"deep": 2}}, "plain": [4]}
    over = {"x": {"y": 3, "z": {"more": 5}}, "plain": {"now": "nested"}}
    assert merged(base, over) == {"x": {"y": 3, "z": {"deep": 2, "more": 5}}, "plain": {"now": "nested"}}
    assert base == {"x": {"y": 1, "z": {"deep": 2}}, "plain": [4]}


class Listed(Config):
    files: tuple[str, ...] = ("default",)
    ks: tuple[int, ...] = ()
    mean: tuple[float, float] = (0.0, 1.0)


@pytest.mark.parametrize("given", [["files=a.npy", "ks=5"], ["files=[a.npy]", "ks=[5]"]])
def test_a_list_field_takes_one_bare_value(given):
    assert load_config(Listed, None, given) == Listed(files=("a.npy",), ks=(5,)) == Listed(files="a.npy", ks=5)
    assert load_config(Listed, None, ["files="]).files == ()
    with pytest.raises(ConfigError, match="mean"):
        load_config(Listed, None, ["mean=0.5"])


def test_the_resolved_tree_round_trips_through_yaml():
    config = load_config(Outer, None, ["inner.name=b"])
    assert load_config(Outer, yaml.safe_load(config.to_yaml())) == config


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("inner.rat=1", ["inner.rat", "Did you mean 'inner.rate'"]),
        ("inner.rate=fast", ["inner.rate", "'fast'"]),
        ("inner.rate.deep=1", ["inner.rate"]),
        ("nonsense", ["nonsense", "path.to.field=value"]),
        ("sizes=[1", ["sizes", "'[1'", "[a, b]"]),
        ("sizes.x=1", ["sizes", "[a, b]"]),
    ],
)
def test_a_bad_override_is_named_in_one_sentence(override, words):
    with pytest.raises(ConfigError) as error:
        load_config(Outer, {"inner": {"rate": 0.5}}, [override])
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["- a\n", "a: [", "inner: 3"])
def test_a_bad_file_is_named(tmp_path, content):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError):
        load_config(Outer, path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere.yaml"):
        load_config(Outer, tmp_path / "nowhere.yaml")


def test_a_config_cannot_be_changed_after_it_is_made():
    with pytest.raises(Exception, match="frozen"):
        Outer().path = "y"


def test_an_assignment_without_a_value_is_an_empty_text():
    assert parse_assignment("judge=") == ("judge", "")
    assert load_config(Outer, None, ["path="]).path == ""


def test_bytes_that_are_no_text_are_named_and_not_called_bad_yaml():
    with pytest.raises(ConfigError, match=r"'text=caf\\udce9' holds bytes that are not UTF-8 text"):
        parse_assignment("text=caf\udce9")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_config_file_may_begin_with_a_byte_order_mark(tmp_path, encoding):
    (tmp_path / "c.yaml").write_bytes("path: à\n".encode(encoding))
    assert load_config(Outer, tmp_path / "c.yaml").path == "à"
