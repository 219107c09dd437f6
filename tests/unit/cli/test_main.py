import ctypes
import os
import signal
import sys
import threading
import time

import pytest
from made_artifacts import stage_of
from ray.exceptions import RayTaskError

from cirray.cli.help import verb_help
from cirray.cli.main import configured, guarded, main, resolve, user_sentence
from cirray.cli.verb import VERBS, verb
from cirray.cli.words import overrides_of
from cirray.core.errors import ConfigError, DataError
from cirray.core.interrupts import own_handlers
from cirray.core.storage import join, write_bytes

WITHOUT_PLACES = (
    "completion",
    "config",
    "init",
    "keys",
    "study",
    "quickstart",
    "completion",
    "doctor",
    "plan",
    "score",
    "submit",
)


def test_flags_and_assignments_are_one_grammar():
    assert overrides_of(["a.yaml", "x.y=1", "--out", "d", "--train-rate=3", "--print-config"]) == [
        "x.y=1",
        "out=d",
        "train_rate=3",
    ]


AS_TYPED = [
    "# 1", "no", "null", "12:30", "the sign says: stop", "000012", "1e5", "[x", "", "=5", '"quoted"', "run #2.png",
    "a.yaml", "--x", "two  words ", "-5",
]  # fmt: skip


@pytest.mark.parametrize("text", AS_TYPED)
def test_every_verb_takes_a_text_as_it_is_typed(text):
    for words in (["--id", text, "--text", text], [f"id={text}", f"text={text}"], [f"--text={text}", f"--id={text}"]):
        run = configured(verb("search"), words).config
        assert (run.id, run.text) == (text, text)
    study = configured(verb("study"), [f"title={text}", f"stages.a.verb={text}", f"judge={text}"])
    assert (study.config.title, study.config.stages["a"].verb, study.config.judge) == (text, text, text)


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
    assert "~/cirray/quickstart" in resolve(cls, [], needed).config.to_yaml()
    moved = resolve(cls, [], [*needed, "root=mine"]).config
    assert "~/cirray/quickstart" not in moved.to_yaml() and "mine/" in moved.to_yaml()
    if "out" in cls.model_fields:
        assert resolve(cls, [], [*needed, "root=mine", "out=there"]).config.out == "there"


def test_an_error_that_crossed_a_worker_is_still_one_sentence():
    try:
        try:
            raise DataError("image 'x' is broken")
        except DataError as inner:
            raise RuntimeError("worker died") from inner
    except RuntimeError as error:
        assert user_sentence(error) == "image 'x' is broken"
    assert user_sentence(RuntimeError("bug")) is None


def test_of_an_error_that_crossed_a_ray_task_the_sentence_is_told_and_not_rays_traceback():
    failed = RayTaskError("run", "Traceback of the worker", DataError("image 'x' is broken")).as_instanceof_cause()
    assert isinstance(failed, DataError) and "(pid=" in str(failed)
    assert user_sentence(failed) == "image 'x' is broken"


def endless():
    end = time.monotonic() + 20
    while time.monotonic() < end:
        time.sleep(0.01)


def swallowing():
    """As a library that turns the interruption into an error of its own."""
    try:
        endless()
    except KeyboardInterrupt:
        raise RuntimeError("the connection was lost") from None


@pytest.mark.parametrize("work", [endless, swallowing])
@pytest.mark.parametrize(
    "number, status, word", [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_ctrl_c_and_sigterm_end_work_with_one_sentence_and_the_shell_s_exit_status(capsys, work, number, status, word):
    before = [signal.getsignal(item) for item in (signal.SIGINT, signal.SIGTERM)]
    timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), number))
    timer.start()
    assert guarded(work) == status
    said = capsys.readouterr().err.splitlines()
    assert (
        len(said) == 1 and said[0].startswith(f"{word}; nothing half-done was published") and "same command" in said[0]
    )
    assert [signal.getsignal(item) for item in (signal.SIGINT, signal.SIGTERM)] == before


def over_python(number):
    """A handler of C code, of which Python knows nothing, as Ray's C++ sets one: here one that ignores the signal."""
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal(number, 1)


def test_a_library_s_handler_does_not_replace_ours(capsys):
    def work():
        with own_handlers() as asked:
            signal.signal(signal.SIGINT, lambda *_: None)
            assert list(asked) == [signal.SIGINT]
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            over_python(signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        endless()

    assert guarded(work) == 143


@pytest.mark.parametrize("error, status", [(KeyboardInterrupt(), 130), (SystemExit(15), 143), (SystemExit(4), 4)])
def test_an_interruption_that_came_as_an_exception_is_one_too(error, status):
    def work():
        raise error

    assert guarded(work) == status


def test_an_exit_with_a_text_is_handed_on_to_python_which_prints_it():
    with pytest.raises(SystemExit, match="no HAProxy"):
        guarded(lambda: sys.exit("no HAProxy"))


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_that_writes_artifacts_can_be_restarted_and_leaves_nothing_of_no_worth(name, capsys):
    """A study runs other verbs' stages."""
    chosen = verb(name)
    assert chosen.restarts == ("--restart" in verb_help(chosen))
    if name not in ("quickstart", "study"):
        assert hasattr(chosen.function(), "__wrapped__") == chosen.restarts
    if not chosen.restarts:
        words = ["x"] if name == "plan" else []
        assert main([name, "--restart", *words]) == 2


def test_a_wrong_setting_leaves_nothing_and_the_corrected_command_works_as_typed(tmp_path, capsys):
    """Also where the first command was killed before it could tidy up, and where it left work that would be lost."""
    towers, out = str(tmp_path / "towers"), str(tmp_path / "out")
    make_towers = ["towers", f"out={towers}", f"vision={tmp_path}/nothing", "language=asset"]
    assert main(make_towers) == 2 and list(tmp_path.iterdir()) == []
    world = ["shapes.labelled_families=2", "shapes.heldout_families=1", "shapes.pool_families=0"]
    assert main(["world", f"out={out}", *world, "shapes.gallery_references=0"]) == 0
    capsys.readouterr()
    images = {"images": "x", "tower": "y"}
    write_bytes(join(stage_of(towers, "features", {"a": 1}, images, ["shards/*"]).work_uri, "shards", "0"), b"1")
    assert main(["mine", "--restart", f"out={out}", "features=[nowhere]"]) == 2
    assert main(["towers", f"out={towers}", "vision=asset", "language=asset"]) == 2
    assert "half-written by a different run (kind" in (said := capsys.readouterr().err) and "--restart" in said
    assert main(["towers", f"out={towers}", "vision=asset", "language=asset", "--restart"]) == 0
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out", "towers"]


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


def test_a_flag_that_takes_no_value_says_so(capsys):
    assert main(["finetune", "--restart=1"]) == 2
    assert capsys.readouterr().err.strip().endswith("Flag --restart takes no value; write it alone.")
