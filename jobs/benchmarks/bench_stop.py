"""How `cirray serve` ends when it is told to stop: at random moments of its start, or with requests open.

    python jobs/benchmarks/bench_stop.py [repeats=30] [seconds=10] [fast=true] [root=DIR]
    python jobs/benchmarks/bench_stop.py requests=80 [slow=120] [repeats=10] ...

A stop during the start ends with 143 (SIGTERM) or 130 (Ctrl-C), one after the first answer with 0; never with a
traceback, by a signal, or with Ray's line about a task that failed. Requests that were sent before are answered 200.
"""

import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from bench_serve import wait_until_ready
from pydantic import Field

from cirray.cli.main import guarded, resolve
from cirray.core.environ import this_program
from cirray.core.fields import Effort, Place
from cirray.core.log import say
from cirray.core.places import Run
from cirray.index.store import open_index

SLOW_HEAD = b"POST /v1/search HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\n{"


class StopConfig(Run):
    """What is tried."""

    checkpoint: Place = "@checkpoint"
    index: Place = "@index"
    fast: bool = False
    repeats: Effort[int] = Field(10, ge=1)
    seconds: float = Field(10.0, ge=0)
    """The signal comes at a random moment of so many seconds after the process began."""
    requests: int = Field(0, ge=0, le=90)
    """More than 0: the signal comes when so many requests are open and the first has been answered."""
    slow: int = Field(0, ge=0)
    """Slow bodies that were sent, and given up, just before them."""
    seed: int = 0


def connect(port: int, count: int, message: bytes) -> list[socket.socket]:
    """Connections on each of which a message was sent."""
    made = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
    for connection in made:
        connection.sendall(message)
    return made


def burst(port: int, config: StopConfig) -> list[socket.socket]:
    """Open requests, of which one at least has been answered."""
    for connection in connect(port, config.slow, SLOW_HEAD):
        connection.close()
    image = open_index(config.index).ids[0]
    body = b'{"text": "make it blue", "gallery_id": "%s", "k": 3}' % image.encode()
    head = (
        b"POST /v1/search HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    )
    made = connect(port, config.requests, head % len(body) + body)
    select.select(made, [], [], 20)
    return made


def status_of(connection: socket.socket) -> str:
    """Status of the answer on a connection, or what happened instead."""
    connection.settimeout(20)
    try:
        return connection.recv(4096)[9:12].decode() or "closed"
    except OSError as error:
        return type(error).__name__


def trial(config: StopConfig, chance: random.Random, folder: Path) -> tuple[int | str, str, float, Counter[str]]:
    """One start and stop: exit status, when it was told to stop, seconds until it had, statuses of open requests."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = chance.choice((signal.SIGTERM, signal.SIGINT))
    command = [
        *this_program(), "serve", f"checkpoint={config.checkpoint}", f"index={config.index}", f"port={port}",
        f"fast={config.fast}".lower(),
    ]  # fmt: skip
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        wait_s, connections = chance.uniform(0, config.seconds), list[socket.socket]()
        if config.requests:
            wait_until_ready(port, server, folder / "log")
            connections = burst(port, config)
        else:
            time.sleep(wait_s)
        begin = time.monotonic()
        server.send_signal(told)
        statuses = Counter(status_of(connection) for connection in connections)
        try:
            status: int | str = server.wait(60)
        except subprocess.TimeoutExpired:
            status = "hung"
        return status, f"{told.name} at {wait_s:.1f} s", time.monotonic() - begin, statuses
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)


def measure(config: StopConfig) -> int:
    """All trials, one line each; 1 when any ended badly."""
    chance, bad = random.Random(config.seed), 0
    with tempfile.TemporaryDirectory() as name:
        for _ in range(config.repeats):
            status, when, seconds, statuses = trial(config, chance, Path(name))
            text = (Path(name) / "log").read_text(errors="replace")
            clean = not any(word in text for word in ("Traceback", "graceful_shutdown failed"))
            good = status in (0, 130, 143) and clean and set(statuses) <= {"200"}
            last = (text.strip().splitlines() or [""])[-1]
            say(f"{'' if good else 'BAD '}{status} after {seconds:.1f} s, {when}, {dict(statuses)} {last[:100]}")
            if not good:
                say(text[-3000:])
            bad += not good
    say(f"{config.repeats - bad} of {config.repeats} ended well (load {os.getloadavg()[0]:.1f})")
    return int(bad > 0)


def main() -> int:
    """Entry point."""
    return guarded(lambda: measure(resolve(StopConfig, [], sys.argv[1:]).config))


if __name__ == "__main__":
    sys.exit(main())
