"""`@name` is the artifact of that name below a run's root; any other place is as it is."""

import pytest

from cirray.cli.main import main, resolve
from cirray.cli.verb import VERBS, verb
from cirray.core.config import Config, given, load_config, validate
from cirray.core.errors import ConfigError
from cirray.core.fields import Place
from cirray.core.places import HOME, Run, place_below
from cirray.core.trees import leaves
from cirray.pipelines.features.config import EmbedRun
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.training.config import FinetuneRun, TuneRun

NEEDED = {"search": ["text=x"], "convert": ["source=x"], "score": ["ranks=x"]}
RUNS = [name for name in VERBS if issubclass(verb(name).config_class(), Run)]


class Inner(Config):
    place: Place = "@inner"
    text: str = "@text"


class Example(Run):
    places: tuple[Place, ...] = ("@a", "b/c")
    named: dict[str, Place] = {"x": "@x/y"}
    sections: tuple[Inner, ...] = (Inner(),)
    inner: Inner = Inner()
    out: Place = "@out"


def test_names_are_resolved_at_any_depth_and_texts_and_paths_stay():
    run = Example(root="/data", inner={"place": "@p"})
    assert run.places == ("/data/a", "b/c") and run.named == {"x": "/data/x/y"} and run.out == "/data/out"
    assert run.sections[0].place == "/data/inner" and run.inner == Inner(place="/data/p")
    assert run.inner.text == "@text" and Inner().place == "@inner" == Example.model_fields["inner"].default.place


def test_what_was_given_stays_given_and_nothing_else():
    run = validate(Example, {"inner": {"place": "@p"}})
    assert run.model_fields_set == {"inner"} and run.given() == {"inner": {"place": f"{HOME}/p"}}
    assert given(run, "inner.place") and not given(run, "inner.text") and not given(run, "out")


@pytest.mark.parametrize(
    ("root", "found"),
    [
        ("s3://bucket/cirray", "s3://bucket/cirray/cirr/features"),
        ("s3://bucket/a?region=x", "s3://bucket/a/cirr/features?region=x"),
        ("/", "/cirr/features"),
        (".", "./cirr/features"),
        ("/x/", "/x/cirr/features"),
        ("~/cirray", "~/cirray/cirr/features"),
    ],
)
def test_a_root_is_a_folder_or_a_uri(root, found):
    assert place_below(root, "@cirr/features") == found


def test_a_name_may_go_up_and_a_file_that_begins_with_the_sign_is_written_with_a_dot():
    assert place_below("/x/y", "@../z") == "/x/y/../z"
    assert EmbedRun(tower="./@odd").tower == "./@odd"


@pytest.mark.parametrize("wrong", ["@", "@/x", "@a//b", "@a/"])
def test_a_sign_without_a_name_is_one_sentence_with_the_field(wrong):
    with pytest.raises(ConfigError) as caught:
        load_config(IndexRun, {"features": ["@features", wrong]}, [])
    told = str(caught.value)
    assert "features.1" in told and repr(wrong) in told and "@features" in told and "\n" not in told


def test_a_root_that_is_no_place_is_one_sentence(capsys):
    with pytest.raises(ConfigError, match="'root' has the value '@x': a root is a path or URI"):
        load_config(EmbedRun, {"root": "@x"})
    assert main(["embed", "--root", "", "--print-config"]) == 2
    assert "root is empty" in capsys.readouterr().err


def test_a_run_inside_a_run_takes_its_root_and_says_its_own():
    assert TuneRun(root="/x").base.features == ("/x/features",) and TuneRun(root="/x").base.root == "/x"
    tree = {"root": "/x", "base": {"init": "@mine", "root": "/y"}}
    assert load_config(TuneRun, tree).base.init == "/y/mine" and load_config(TuneRun, tree).out == "/x/sweep"
    assert FinetuneRun().root == HOME


def test_resolved_values_resolve_to_themselves():
    run = EmbedRun(root="/x")
    assert validate(EmbedRun, run.to_dict()) == run


@pytest.mark.parametrize("name", RUNS)
def test_root_moves_every_place_of_every_verb(name):
    chosen = verb(name)
    files = [chosen.own_file()] if chosen.own_file() else []
    config = resolve(chosen.config_class(), files, [*NEEDED.get(name, []), "root=/moved"]).config
    told = leaves(config.to_dict())
    assert [path for path, value in told.items() if "~/cirray" in str(value)] == []
    texts = [value for value in told.values() if isinstance(value, str)]
    assert name in ("study", "quickstart") or not any(value.startswith("@") for value in texts)


def test_the_command_line_wins_over_the_variable_the_variable_over_the_file_and_the_file_over_the_default(
    tmp_path, monkeypatch
):
    file = tmp_path / "embed.yaml"
    file.write_text("root: /file\n")

    def out(files, *words):
        return resolve(EmbedRun, [str(item) for item in files], words).config.out

    assert out([]) == f"{HOME}/features" and out([file]) == "/file/features"
    monkeypatch.setenv("CIRRAY_ROOT", "/variable")
    assert out([file]) == out([]) == "/variable/features"
    assert out([file], "root=/typed") == "/typed/features" and out([file], "out=there") == "there"


def test_a_bare_sign_in_a_file_says_that_it_needs_quotes(tmp_path):
    (tmp_path / "a.yaml").write_text("tower: @towers\n")
    with pytest.raises(ConfigError, match='stands in quotes, "@features"'):
        load_config(EmbedRun, tmp_path / "a.yaml")
