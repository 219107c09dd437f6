import http.server
import signal
import subprocess
import sys
import threading
import time

import pytest

from cirray.serving import launch
from cirray.serving.config import ServeRun

SCRIPT = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for a command in the background
from cirray.serving.launch import wait_for_signal
print("up", flush=True)
wait_for_signal()
print("stopped", flush=True)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_service_stops_in_order_when_told_to(name):
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True) as process:
        while process.stdout.readline().strip() != "up":
            assert process.poll() is None
        time.sleep(1.0)  # the handlers are set a moment after "up"
        process.send_signal(getattr(signal, name))
        rest, _ = process.communicate(timeout=30)
    assert rest.strip() == "stopped" and process.returncode == 0


class Answer(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self):
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *said):
        """Nothing."""


@pytest.mark.parametrize(("status", "in_order"), [(200, True), (404, False), (503, False)])
@pytest.mark.parametrize("told", [KeyboardInterrupt, SystemExit(15)])
def test_told_to_stop_at_its_first_answer_a_service_stops_in_order(monkeypatch, status, in_order, told):
    """The signal comes when the port answers already, but before `serve.run` has returned."""
    stopped = []
    monkeypatch.setattr(Answer, "status", status)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(launch, "check_port", lambda *given: None)
        monkeypatch.setattr(launch, "check_service", lambda args: None)
        monkeypatch.setattr(launch, "private_cluster", lambda: None)
        monkeypatch.setattr(launch, "set_default", lambda *given: None)
        monkeypatch.setattr(launch, "stop", lambda: stopped.append(1))

        def start(plan, fast):
            raise told

        monkeypatch.setattr(launch, "start", start)
        run = ServeRun(port=server.server_address[1])
        if in_order:
            launch.run_serve(run)
        else:
            with pytest.raises((KeyboardInterrupt, SystemExit)):
                launch.run_serve(run)
        server.shutdown()
    assert stopped == [1] * in_order
