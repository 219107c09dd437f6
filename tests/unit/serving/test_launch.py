import http.server
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from cirray.core.interrupts import Terminated, noted
from cirray.serving import launch
from cirray.serving.config import ServeRun

SCRIPT = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for a command in the background
from cirray.core.interrupts import noted
with noted() as told:
    signal.signal(signal.SIGTERM, lambda *_: exit("a library's handler"))
    print("up", flush=True)
    told.wait()
    print("stopping", flush=True)
    time.sleep({seconds})
print("stopped", flush=True)
"""


@contextmanager
def told(seconds):
    command = [sys.executable, "-c", SCRIPT.format(seconds=seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().strip() == "up"
        yield process


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_is_noted_whatever_a_library_or_a_shell_has_set(name):
    with told(0) as process:
        process.send_signal(getattr(signal, name))
        rest, _ = process.communicate(timeout=30)
    assert rest.split() == ["stopping", "stopped"] and process.returncode == 0


def test_a_second_signal_ends_the_process_at_once():
    with told(60) as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline().strip() == "stopping"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == -signal.SIGINT


def test_noted_signals_raise_where_it_is_asked_and_the_handlers_return():
    before = signal.getsignal(signal.SIGTERM)
    with noted() as note:
        assert not note.wait(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        assert note.wait(5)
        with pytest.raises(Terminated):
            note.stop()
    assert signal.getsignal(signal.SIGTERM) is before


class Answer(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self):
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *said):
        """Nothing."""


@pytest.fixture
def prepared(monkeypatch):
    """`launch` without checks and without Ray; what was done is listed."""
    did = []
    monkeypatch.setattr(launch, "check_port", lambda *given: None)
    monkeypatch.setattr(launch, "check_service", lambda args: None)
    monkeypatch.setattr(launch, "private_cluster", lambda **given: None)
    monkeypatch.setattr(launch, "set_default", lambda *given: None)
    monkeypatch.setattr(launch, "stop", lambda: did.append("stopped"))
    monkeypatch.setattr(launch, "leave", lambda: did.append("left"))
    return did


@pytest.mark.parametrize(("status", "in_order"), [(200, True), (404, False), (503, False)])
@pytest.mark.parametrize(("sent", "told"), [("SIGINT", KeyboardInterrupt), ("SIGTERM", Terminated)])
def test_told_to_stop_at_its_first_answer_a_service_stops_in_order(monkeypatch, prepared, status, in_order, sent, told):
    """The signal comes when the port answers already, but before Ray says that the application runs."""
    monkeypatch.setattr(Answer, "status", status)
    monkeypatch.setattr(launch, "start", lambda plan, note: os.kill(os.getpid(), getattr(signal, sent)) or note.wait(9))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        run = ServeRun(port=server.server_address[1], index="i", checkpoint="c")
        if in_order:
            launch.run_serve(run)
        else:
            with pytest.raises(told) as caught:
                launch.run_serve(run)
            assert caught.type is told
        server.shutdown()
    assert prepared == (["stopped"] if in_order else ["left"])


@pytest.mark.parametrize(("phase", "made"), [("init", 1), ("start", 2), ("run_many", 3)])
def test_in_no_phase_of_its_start_does_a_signal_raise_inside_ray(monkeypatch, prepared, phase, made):
    """Each of Ray's calls runs to its end; the next one is not made."""
    import ray
    from ray import serve

    did = []

    def call(name):
        def called(*given, **named):
            if name == phase:
                os.kill(os.getpid(), signal.SIGTERM)
            did.append(name)

        return called

    for module, name in ((ray, "init"), (serve, "start"), (serve, "run_many")):
        monkeypatch.setattr(module, name, call(name))
    monkeypatch.setattr("cirray.serving.app.application_of", lambda *given, **named: None)
    monkeypatch.setattr(launch, "answers", lambda *given: False)
    with pytest.raises(Terminated):
        launch.run_serve(ServeRun(port=1, index="i", checkpoint="c"))
    assert did == ["init", "start", "run_many"][:made] and prepared == ["left"]
