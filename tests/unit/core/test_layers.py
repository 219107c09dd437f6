"""Files laid over one another: the later wins, and every value and error knows where it came from."""

import pytest

from cirray.core.config import Config, load, load_config
from cirray.core.errors import ConfigError
from cirray.core.trees import Layer, Stack


class Inner(Config):
    rate: float = 0.1
    names: tuple[str, ...] = ("default",)


class Part(Config):
    kind: str = "one"
    settings: dict[str, int] = {}


class Root(Config):
    inner: Inner = Inner()
    steps: int = 1
    own: dict[str, int] = {"default": 0}
    part: Part = Part(settings={"of_one": 1})


def files(tmp_path, *texts):
    paths = [tmp_path / f"{number}.yaml" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return [str(path) for path in paths]


def test_mappings_merge_lists_replace_and_the_later_file_wins(tmp_path):
    paths = files(
        tmp_path,
        "inner: {rate: 1, names: [a, b]}\nown: {x: 1, y: 2}\nsteps: 3\n",
        "inner: {names: [c]}\nown: {y: 3, z: 4}\n# steps stay\n",
        "",
    )
    config = load_config(Root, paths, ["own.w=5"])
    assert config.inner == Inner(rate=1, names=("c",)) and config.steps == 3
    assert config.own == {"x": 1, "y": 3, "z": 4, "w": 5}
    assert load_config(Root, paths[::-1]).own == {"x": 1, "y": 2, "z": 4}


def test_an_empty_mapping_empties_what_earlier_files_said_and_not_the_defaults(tmp_path):
    paths = files(tmp_path, "inner: {rate: 1}\nown: {x: 1}\n", "own: {}\ninner: {}\n")
    assert load_config(Root, paths).own == {} and load_config(Root, paths).inner == Inner()


def test_a_component_of_another_kind_drops_the_old_ones_settings(tmp_path):
    paths = files(
        tmp_path, "part: {settings: {a: 1}}\n", "part: {kind: two, settings: {b: 2}}\n", "part: {kind: one}\n"
    )
    assert load_config(Root, paths[:1]).part == Part(settings={"a": 1}) and Root().part.settings == {"of_one": 1}
    assert load_config(Root, paths[:2]).part == Part(kind="two", settings={"b": 2})
    assert load_config(Root, paths).part.settings == {"of_one": 1}  # those of the place again
    assert load_config(Root, None, ["part.settings.b=2", "part.kind=two"]).part == Part(kind="two", settings={"b": 2})


def test_every_value_knows_who_said_it_and_over_whom(tmp_path):
    first, second = files(tmp_path, "steps: 3\ninner: {rate: 1}\n", "steps: 4\ninner: {rate: 1}\n")
    said = load(Root, [first, Layer({"own": {"x": 1}}, "the environment"), second], ["steps=5"]).said
    origin = said.origin(("steps",))
    assert origin.name == "the command line" and origin.over == (("3", first), ("4", second))
    assert said.origin(("inner", "rate")).name == second and not said.origin(("inner", "rate")).over
    assert said.origin(("own", "x")).name == "the environment"
    assert said.origin(("inner", "names")).name == ""


def test_a_section_that_replaces_a_value_leaves_no_origin_behind():
    stack = Stack()
    stack.add(Layer({"a": {"x": 1, "y": 2}}, "first"))
    stack.add(Layer({"a": "text"}, "second"))
    stack.add(Layer({"a": {"z": 4}}, "third"))
    assert {place: item.name for place, item in stack.origins.items()} == {("a", "z"): "third"}
    assert stack.tree == {"a": {"z": 4}}


FAULTS = [
    (["steps: x\n", "inner: {rate: 1}\n"], [], "0.yaml: Config field 'steps' has the value 'x'"),
    (["steps: 1\n", "inner: {raet: 1}\n"], [], "1.yaml: Unknown config field in section 'inner' 'inner.raet'"),
    (["steps: 1\n", "training: {steps: 1}\n"], [], "1.yaml: Unknown config field 'training'"),
    (["steps: x\n", "steps: 2\n"], ["steps=y"], "the command line: Config field 'steps' has the value 'y'"),
    (["steps: 1\n"], ["inner={raet: 1}"], "the command line: Unknown config field in section 'inner' 'inner.raet'"),
    (["inner: [x]\n"], [], "0.yaml: Config field 'inner' has the value ['x']"),
    (["steps: {x: 1}\n"], [], "0.yaml: Config section 'steps': Input should be a valid integer"),
    (["own: {a: b}\n"], ["own.c=1"], "0.yaml: Config field 'own.a' has the value 'b'"),
]


@pytest.mark.parametrize(("texts", "overrides", "words"), FAULTS)
def test_an_error_names_the_file_that_it_came_from(tmp_path, texts, overrides, words):
    with pytest.raises(ConfigError) as error:
        load_config(Root, files(tmp_path, *texts), overrides)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_faults_of_several_files_are_told_file_by_file(tmp_path):
    with pytest.raises(ConfigError, match=r"1.yaml: .*'steps' has.* [^ ]*0.yaml: .*'stepz'"):
        load_config(Root, files(tmp_path, "stepz: 1\n", "steps: x\n"))


def test_plain_values_of_a_program_have_no_origin():
    with pytest.raises(ConfigError, match=r"^Config field 'steps' has the value 'x'"):
        load_config(Root, {"steps": "x"})
