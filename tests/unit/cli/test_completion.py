"""Completion: how words may go on, and bash and zsh in a terminal of their own."""

import os
import pty
import select
import shutil
import sys
import time
from pathlib import Path

import pytest

from cirray.cli.completion import answers
from cirray.cli.main import main

PACKAGE = Path(__file__).resolve().parents[3]
SHELLS = {"bash": ["--norc", "--noprofile", "-i"], "zsh": ["-f", "-i"]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a config file whose root holds one artifact."""
    (tmp_path / "my run.yaml").write_text("root: store\n")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / ".hidden.yaml").write_text("")
    (tmp_path / "store" / "features").mkdir(parents=True)
    (tmp_path / "store" / "features" / "manifest.json").write_text("{}")
    (tmp_path / "store" / "seed-0").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CIRRAY_ROOT", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    "line, expected",
    [
        ("ev", ["evaluate"]),
        ("nothing tr", []),
        ("finetune --pr", ["--print-config"]),
        ("search --rest", []),
        ("doctor --j", ["--json"]),
        ("finetune --dev", ["--device"]),
        ("finetune training.opt", ["training.optimizer."]),
        ("finetune training.optimizer.sched", ["training.optimizer.schedule=", "training.optimizer.schedule_stretch="]),
        ("finetune training.optimiser.", []),
        (
            "finetune training.optimizer.schedule=co",
            [f"training.optimizer.schedule={x}" for x in ("constant", "cosine")],
        ),
        ("finetune --training.engine=d", ["--training.engine=deepspeed"]),
        ("finetune --training.engine d", ["deepspeed"]),
        ("finetune data.format=fas", ["data.format=fashion200k", "data.format=fashioniq"]),
        ("finetune ray.enabled=t", ["ray.enabled=true"]),
        ("embed parts=[pool,ga", ["parts=[pool,gallery"]),
        ("finetune training.nothing=t", []),
        ("finetune --help training.opt", ["training.optimizer"]),
        ("finetune --help=al", ["--help=all", "--help=allow_leaks"]),
        ("completion z", ["zsh"]),
        ("finetune training.mixing=pa", ["training.mixing=paired"]),
        ("finetune training.mixing.kind=curriculum training.mixing.settings.", ["training.mixing.settings.shares="]),
        ("finetune training.mixing=paired training.mixing.settings.", ["training.mixing.settings.ratio="]),
        ("finetune training.terms.two_hop.d", ["training.terms.two_hop.distance="]),
        ("mine mining.policy.settings.rank_l", ["mining.policy.settings.rank_low="]),
        ("config fine", ["finetune"]),
        ("config finetune training.opt", ["training.optimizer."]),
        ("plan configs/cirr/train-generator-vdg.yaml alignment=c", ["alignment=captions"]),
        ("plan finetune.yaml plan.gp", ["plan.gpu="]),
    ],
)
def test_a_word_goes_on_as_the_command_line_has_it(line, expected):
    assert answers(line.split(" ")) == expected


def test_files_and_folders_are_offered_where_they_make_sense(folder):
    assert answers(["finetune", "my"]) == ["my run.yaml"]
    assert answers(["finetune", "no"]) == [] and answers(["finetune", "init=no"]) == ["init=notes.txt"]
    assert answers(["finetune", "out=st"]) == ["out=store/"]
    assert answers(["finetune", f"out={folder}/store/f"]) == [f"out={folder}/store/features/"]
    assert not [item for item in answers(["finetune", ""]) if "hidden" in item]


def test_artifacts_below_the_root_are_offered_by_name(folder, monkeypatch):
    found = ["init=@features", "init=@seed-0/"]
    assert answers(["finetune", "my run.yaml", "init=@"]) == found
    assert answers(["finetune", "--root", "store", "init=@"]) == answers(["finetune", "root=store", "init=@"]) == found
    assert answers(["embed", "root=elsewhere", "tower=@"]) == []
    monkeypatch.setenv("CIRRAY_ROOT", str(folder / "store"))
    assert answers(["finetune", "features=[@fe"]) == ["features=[@features"]


def test_a_shell_that_is_not_known_is_refused_with_those_that_are(capsys):
    assert main(["completion", "fish"]) == 2
    error = capsys.readouterr().err
    assert "'fish'" in error and "'bash' or 'zsh'" in error


def test_an_unknown_verb_and_an_unknown_field_are_answered_with_the_near_one(capsys):
    assert main(["finetun"]) == 2 and main(["finetune", "--devise", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "Did you mean 'finetune'?" in error and "Did you mean 'device'?" in error


def seen(shown):
    """The last line as it stands on the screen: what a terminal makes of backspaces and the bell."""
    line, at = list[str](), 0
    for char in shown.rpartition("\r")[2].replace("\x07", ""):
        if char == "\b":
            at -= 1
        else:
            line[at : at + 1], at = [char], at + 1
    return "".join(line)


class Terminal:
    """A shell in a terminal of its own, with `cirray` on its path and its completion read."""

    def __init__(self, shell, folder):
        command = folder / "cirray"
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m cirray "$@"\n')
        command.chmod(0o755)
        python = os.pathsep.join(filter(None, (str(PACKAGE), os.environ.get("PYTHONPATH"))))
        more = {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": python, "PS1": "> ", "TERM": "dumb"}
        self.child, self.handle = pty.fork()
        if not self.child:
            os.execvpe(shell, [shell, *SHELLS[shell]], {**os.environ, **more})
        self.type(f"source <(cirray completion {shell}); echo re''ady\n", "ready")

    def type(self, text, expected):
        """Type a text; everything that is shown until the expected text is among it."""
        os.write(self.handle, text.encode())
        shown, end = "", time.monotonic() + 60
        while expected not in shown and time.monotonic() < end:
            if select.select([self.handle], [], [], 0.2)[0]:
                shown += os.read(self.handle, 65536).decode(errors="replace")
        assert expected in shown, shown
        return shown

    def close(self):
        """End the shell."""
        os.write(self.handle, b"\x15exit\n")
        os.waitpid(self.child, 0)
        os.close(self.handle)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_tab_in_a_shell_completes_verbs_paths_choices_and_files(shell, folder):
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    terminal = Terminal(shell, folder)
    try:
        for typed, then in [
            ("fine", "tune "),
            ("finetune training.optim", "izer."),
            ("finetune training.optimizer.schedule=on", "e_cycle "),
            ("finetune --print", "-config "),
            ("finetune my", "\\ run.yaml "),
            ("finetune root=store init=@feat", "ures "),
        ]:
            assert seen(terminal.type(f"cirray {typed}\t", then)).endswith(f"cirray {typed}{then}")
            terminal.type("\x15echo cle''ared\n", "cleared")
    finally:
        terminal.close()
