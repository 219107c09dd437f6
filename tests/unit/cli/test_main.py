import pytest

from cirray.cli.main import VERBS, guarded, main, overrides_of, resolve, user_sentence, verb
from cirray.core.errors import ConfigError, DataError

WITHOUT_PLACES = ("compare", "quickstart", "doctor", "plan", "score", "submit")


def test_flags_and_assignments_are_one_grammar():
    assert overrides_of(["a.yaml", "x.y=1", "--out", "d", "--train-rate=3", "--print-config"]) == [
        "x.y=1",
        "out=d",
        "train_rate=3",
    ]


@pytest.mark.parametrize("arguments", [["loose"], ["--out"]])
def test_a_word_that_means_nothing_is_refused(arguments):
    with pytest.raises(ConfigError, match="loose|--out"):
        overrides_of(arguments)


def test_an_unknown_verb_exits_with_2_and_one_sentence(capsys):
    assert main(["pretran"]) == 2
    error = capsys.readouterr().err
    assert "Did you mean 'pretrain'" in error and len(error.strip().splitlines()) == 1


def test_an_unknown_field_exits_with_2(capsys):
    assert main(["world", "shapes.sed=1"]) == 2
    assert "shapes.seed" in capsys.readouterr().err


def test_the_config_is_printed_resolved(capsys):
    assert main(["world", "shapes.seed=7", "--print-config"]) == 0
    assert "seed: 7" in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name in VERBS if name not in WITHOUT_PLACES])
def test_one_word_moves_every_place_of_a_verb_and_a_named_one_stays(name):
    cls, needed = verb(name).config_class(), {"search": ["text=x"], "convert": ["source=x"]}.get(name, [])
    assert "~/cirray/quickstart" in resolve(cls, None, needed).to_yaml()
    moved = resolve(cls, None, [*needed, "root=mine"])
    assert "~/cirray/quickstart" not in moved.to_yaml() and "mine/" in moved.to_yaml()
    if "out" in cls.model_fields:
        assert resolve(cls, None, [*needed, "root=mine", "out=there"]).out == "there"


def test_a_verb_without_such_places_knows_no_root():
    with pytest.raises(ConfigError, match="'root'"):
        resolve(verb("submit").config_class(), None, ["root=mine"])


def test_an_error_that_crossed_a_worker_is_still_one_sentence():
    try:
        try:
            raise DataError("image 'x' is broken")
        except DataError as inner:
            raise RuntimeError("worker died") from inner
    except RuntimeError as error:
        assert user_sentence(error) == "image 'x' is broken"
    assert user_sentence(RuntimeError("bug")) is None


def test_an_interrupt_says_how_to_go_on(capsys):
    def work():
        raise KeyboardInterrupt

    assert guarded(work) == 130
    assert "same command" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 // 0)


def test_every_verb_loads():
    assert verb("world").name == "world"


def folder_with(tmp_path, broken):
    """A gallery of three pictures, some of them cut short."""
    from PIL import Image

    gallery = tmp_path / "images"
    gallery.mkdir()
    for number in range(3):
        path = gallery / f"{number}.png"
        Image.effect_noise((48, 48), 40 + number).convert("RGB").save(path)
        if number < broken:
            path.write_bytes(path.read_bytes()[:200])
    return gallery


@pytest.mark.parametrize(("broken", "status"), [(0, 0), (1, 3)])
def test_a_run_that_left_images_out_says_so_in_its_exit_status(tmp_path, capsys, broken, status):
    gallery = folder_with(tmp_path, broken)
    assert main(["towers", f"out={tmp_path / 'towers'}"]) == 0
    arguments = [f"data.folder.root={gallery}", f"tower={tmp_path / 'towers'}", f"out={tmp_path / 'features'}"]
    for _ in range(2):  # the second time the artifact is there already
        assert main(["embed", *arguments, "ray.enabled=false"]) == status
        shown = capsys.readouterr().out
        assert f"{3 - broken} images" in shown
        assert ("rejected 0: " in shown) == bool(broken)


def test_names_of_every_kind_can_be_printed_on_every_terminal(monkeypatch):
    import io
    import sys

    from cirray.core.log import complain, printable, say

    for encoding in ("ascii", "latin-1", "utf-8"):
        bytes_ = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_, encoding=encoding))
        monkeypatch.setattr(sys, "stderr", sys.stdout)
        say("caf\udce9 \u65e5 é")
        complain("\udce9")
        assert bytes_.getvalue().decode(encoding).startswith("caf\\udce9 ")
    assert printable("a\nb\udce9 é\u202f") == "a\\nb\\udce9 é\\u202f"
