import signal
import subprocess
import sys
import time

import pytest

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
