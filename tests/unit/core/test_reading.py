"""Text is text: the annotation of a field decides what typed characters mean, in a file as on the command line."""

from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import Field

from cirray.core import typed as typed_text
from cirray.core.config import Config, load_config
from cirray.core.errors import ConfigError
from cirray.core.typed import parse_yaml

AS_TYPED = [
    "# 1", "no", "null", "12:30", "the sign says: stop", "000012", "1e5", "[x", "", "=5", "a=b=c", '"quoted"', "'it'",
    "run #2.png", "{x", "{a: 1}", "[a, b]", "~", "true", "0x10", "1_000", "- a", "@features", "%x", "!x", "&x", "*x",
    " spaces ", "|", ">", "?", "\\d", "2026-11-30", "é #2", "x, y",
]  # fmt: skip


class Section(Config):
    rate: float = 0.5
    name: str = ""


class Fields(Config):
    text: str = "default"
    choice: Literal["no", "012", "on"] = "on"
    steps: int = 1
    rate: float = 1.0
    flag: bool = False
    maybe: int | None = 3
    perhaps: str | None = "x"
    queries: Annotated[int, Field(ge=0)] | Literal["benchmark"] = 1
    fused: bool | Literal["auto"] = "auto"
    start: float | Literal["source"] | None = None
    value: str | int | float | bool | None = None
    files: tuple[str, ...] = ()
    ks: tuple[int, ...] = ()
    hosts: tuple[str, ...] | None = ("x",)
    betas: tuple[float, float] = (0.9, 0.98)
    pair: tuple[float, float] | None = None
    parts: tuple[Literal["pool", "no"], ...] = ()
    rows: dict[str, str] = {}
    weights: dict[str, float] = {}
    features: dict[str, tuple[str, ...]] = {}
    free: dict[str, Any] = {}
    section: Section | None = None
    sections: tuple[Section, ...] = ()


def typed(*overrides):
    return load_config(Fields, None, overrides)


@pytest.mark.parametrize("text", AS_TYPED)
def test_a_text_takes_its_characters_as_typed(text):
    config = typed(f"text={text}", f"rows.a={text}", f"section.name={text}")
    assert (config.text, config.rows["a"], config.section.name) == (text, text, text)
    assert type(config.text) is str


@pytest.mark.parametrize("text", ["no", "012", "1e5", "12:30", "2026-11-30", "~", "true", "0o17", ".5", "on", "1_000"])
def test_a_files_unquoted_scalars_are_text_too_where_a_field_takes_text(tmp_path, text):
    (tmp_path / "c.yaml").write_text(f"text: {text}\nfiles: [{text}, b]\nrows: {{{text}: {text}}}\n")
    config = load_config(Fields, tmp_path / "c.yaml")
    assert (config.text, config.files, config.rows) == (text, (text, "b"), {text: text})


@pytest.mark.parametrize("text", [name for name in AS_TYPED if name and not name.startswith(("[a", '"q', "'it"))])
def test_a_list_takes_one_bare_value(text):
    assert typed(f"files={text}", f"features.row={text}").files == (text,)
    assert typed(f"features.row={text}").features == {"row": (text,)}


READ = {
    "steps": {"5": 5, "+5": 5, "007": 7, "0x10": 16, "0o17": 15, "1e3": 1000, "-2": -2},
    "rate": {"1e-3": 0.001, ".5": 0.5, "5.": 5.0, "3": 3.0, "1E5": 1e5, "-.inf": float("-inf")},
    "flag": {"true": True, "True": True, "FALSE": False},
    "maybe": {"null": None, "~": None, "": None, "7": 7},
    "perhaps": {"null": None, "~": "~", "": "", "7": "7", "Null": "Null", '"null"': "null", "'null'": "null"},
    "queries": {"400": 400, "benchmark": "benchmark"},
    "fused": {"true": True, "false": False, "auto": "auto"},
    "start": {"source": "source", "1e-2": 0.01, "null": None, "2": 2.0},
    "value": {"012": "012", "12": 12, "1e-3": 0.001, "no": "no", "true": True, "null": None,
              '"12"': "12", "a #b": "a #b"},
    "choice": {"no": "no", "012": "012"},
    "files": {
        "[a, b]": ("a", "b"), "": (), "[]": (), "[a b #2.png,c]": ("a b #2.png", "c"), '["a, b", c]': ("a, b", "c"),
        "[@x, no, 012]": ("@x", "no", "012"), "['it''s']": ("it's",),
        '["\\u00e9]"]': ("é]",), "[a[1], b]": ("a[1]", "b"),
    },
    "ks": {"[1, 5]": (1, 5), "7": (7,), "": ()},
    "hosts": {"null": None, "a.org": ("a.org",), "[a, b]": ("a", "b")},
    "betas": {"[0.9, 1e-1]": (0.9, 0.1)},
    "pair": {"null": None, "[1, 2]": (1.0, 2.0)},
    "parts": {"no": ("no",), "[no, pool]": ("no", "pool")},
    "rows": {"{a: 012, b: no, c: x: y}": {"a": "012", "b": "no", "c": "x: y"}, '{"a":"b, c"}': {"a": "b, c"}},
    "weights": {"{a: 1e-3}": {"a": 0.001}},
    "features": {"{a: [x, y], b: z}": {"a": ("x", "y"), "b": ("z",)}},
    "free": {"{a: 1e3, b: {c: [1, no, null, '012']}, d: true}":
             {"a": 1000.0, "b": {"c": [1, "no", None, "012"]}, "d": True}},
    "section": {"null": None, "{rate: 2, name: 012}": Section(rate=2, name="012")},
    "sections": {"[{rate: 2}, {name: no}]": (Section(rate=2), Section(name="no")), "{rate: 3}": (Section(rate=3),)},
}  # fmt: skip


@pytest.mark.parametrize(("field", "text", "value"), [(name, *item) for name in READ for item in READ[name].items()])
def test_everything_else_is_read_by_the_core_schema(field, text, value):
    found = getattr(typed(f"{field}={text}"), field)
    assert found == value and type(found) is type(value)


def test_a_path_leads_into_a_mapping_of_ones_own_and_into_one_typed_before():
    assert typed("free.zero.size=5e8", "free.names=[a]").free == {"zero": {"size": 5e8}, "names": ["a"]}
    assert typed("rows={a: 1}", "rows.b=2", "section={rate: 2}", "section.name=x").rows == {"a": "1", "b": "2"}


REFUSED = {
    "flag=no": "true, false", "fused=yes": "true, false, auto", "flag=1": "true, false", "steps=fast": "'fast'",
    "steps=1.5": "1.5", "ks=[1": "[a, b]", "betas=0.9": "[a, b]", "queries=all": "benchmark", "choice=off": "'off'",
    "section.rate=x": "'section.rate' has the value 'x'", "steps=": "''", "sections=[{rat: 1}]": "'sections.0.rate'",
}  # fmt: skip


@pytest.mark.parametrize(("override", "words"), REFUSED.items())
def test_what_fits_nothing_is_refused_by_its_path_and_characters(override, words):
    with pytest.raises(ConfigError) as error:
        typed(override)
    assert words in str(error.value) and str(error.value).startswith("the command line: ")


def test_a_file_is_read_as_yaml_and_quotes_make_text(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "base: &base {steps: 2, rate: 1e-3}\n".replace("base: &base", "free: &base")
        + "text: a  # comment\nvalue: '12'\nperhaps: null\nflag: true\nsection: {<<: {rate: 3}, name: 007}\nks: 5\n"
        "files:\n  - no\n  - |-\n    two\n    lines\n"
    )
    config = load_config(Fields, path)
    assert config.free == {"steps": 2, "rate": 0.001} and (config.text, config.value) == ("a", "12")
    assert (config.perhaps, config.flag, config.section, config.ks) == (None, True, Section(rate=3, name="007"), (5,))
    assert config.files == ("no", "two\nlines")


@pytest.mark.parametrize("content", ["steps: 1\nsteps: 2\n", "section:\n  rate: 1\n  rate: 2\n"])
def test_a_key_that_stands_twice_is_refused(tmp_path, content):
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(ConfigError, match="appears twice"):
        load_config(Fields, tmp_path / "c.yaml")


def test_yaml_that_is_parsed_in_c_is_what_pythons_parser_reads():
    text = "a: 012\nb: '012'\nc: |-\n  no\nd: [1e3, no, ~, \"x\"]\ne:\nf: ''\n"
    text += "g: &x {a: 1}\nh: {<<: *x, 2: b}\n2026-12-01: >\n  y\n"
    fast, slow = (yaml.load(text, loader) for loader in (typed_text._FastLoader, typed_text._Loader))
    assert kinds(fast) == kinds(slow) and parse_yaml(text) == slow
    assert issubclass(typed_text._FastLoader, yaml.CSafeLoader)


def kinds(tree):
    """The values with their types."""
    if isinstance(tree, dict):
        return [(name, kinds(value)) for name, value in tree.items()]
    return [kinds(value) for value in tree] if isinstance(tree, list) else (type(tree), tree)
