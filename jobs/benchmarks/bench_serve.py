"""What Ray Serve costs: one search service bare (uvicorn), behind Serve's default proxy, and on Serve's fast path.

    python jobs/benchmarks/bench_serve.py [root=DIR] [checkpoint=DIR] [index=DIR] [seconds=5] [clients=[1,8,32]]

Closed loop: every client sends its next request when the last one is answered. Server and clients share this machine,
so figures are comparable with each other, not with a load generator on another host.
"""

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import httpx
import numpy as np
import yaml
from machine import machine
from pydantic import Field

from cirray.cli.main import guarded, resolve
from cirray.core.errors import ServingError
from cirray.core.fields import Place
from cirray.core.log import complain, say
from cirray.core.places import Run
from cirray.index.store import open_index
from cirray.serving.config import HAPROXY_PORTS
from cirray.serving.launch import fast_path

ROOT = Path(__file__).resolve().parents[2]
SETTLE_S = 3.0
"""HAProxy is reloaded once more when the replica has just become ready, which closes young connections."""


class BenchConfig(Run):
    """What is measured."""

    checkpoint: Place = "@checkpoint"
    index: Place = "@index"
    modes: tuple[str, ...] = ("bare", "serve", "fastpath")
    clients: tuple[int, ...] = (1, 8, 32)
    seconds: float = Field(5.0, gt=0, le=60)
    warm_up_s: float = Field(1.0, ge=0, le=60)
    bodies: tuple[str, ...] = ("id", "upload")
    role: str = "measure"
    port: int = 0


def serve_bare(config: BenchConfig) -> None:
    """The same application without Ray, one query a pass."""
    import torch
    import uvicorn

    from cirray.search_engine import SearchEngine
    from cirray.serving.api import make_api
    from cirray.serving.config import ServeArgs
    from cirray.serving.service import DirectService

    torch.set_num_threads(1)
    service = DirectService(SearchEngine.open(config.checkpoint, config.index))
    app = make_api(lambda: service, ServeArgs(checkpoint=config.checkpoint, index=config.index))
    uvicorn.run(app, host="127.0.0.1", port=config.port, log_level="error", access_log=False)


def command(mode: str, config: BenchConfig, port: int, folder: Path, replicas: int, length: int) -> list[str]:
    """How a mode's server is started."""
    if mode == "bare":
        places = [f"checkpoint={config.checkpoint}", f"index={config.index}", f"port={port}"]
        return [sys.executable, __file__, "role=bare", *places]
    tree = yaml.safe_load((ROOT / "serve_configs" / "retriever.yaml").read_text())
    tree["http_options"]["port"] = port
    application = tree["applications"][0]
    application["args"] |= {"checkpoint": config.checkpoint, "index": config.index}
    application["deployments"][0]["num_replicas"] = replicas
    if mode == "echo":
        application |= {"import_path": "echo_app:build_app", "args": {"length": length}}
        del application["deployments"][0]["user_config"]
    (folder / "serve.yaml").write_text(yaml.safe_dump(tree))
    return [str(Path(sys.executable).parent / "serve"), "run", str(folder / "serve.yaml")]


def environment(mode: str) -> dict[str, str]:
    """A mode's environment: a cluster and a token of its own, no niceness; the fast path's is the shipped file's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_") or name == "RAY_TMPDIR"}
    kept |= {"RAY_ADDRESS": "local", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_worker_niceness": "0"}
    kept |= {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    if mode == "echo":
        kept["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), kept.get("PYTHONPATH", "")])
    if mode in ("fastpath", "echo"):
        lines = (ROOT / "serve_configs" / "fastpath.env").read_text().splitlines()
        pairs = (line.split("=", 1) for line in lines if line and not line.startswith("#"))
        kept |= {name: value.strip('"') for name, value in pairs} | fast_path()
        kept |= {name: str(free_port()) for name in HAPROXY_PORTS}
    return kept


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(
    mode: str, config: BenchConfig, replicas: int = 1, length: int = 0,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[tuple[int, str]]:  # fmt: skip
    """A running server of one mode, with further variables of its cluster; yields its port, and a text that only its
    processes have in their environment.
    """
    port, variables = free_port(), {**variables, **environment(mode)}
    with tempfile.TemporaryDirectory() as name, open(Path(name) / "log", "wb") as log:
        folder = Path(name)
        process = subprocess.Popen(
            command(mode, config, port, folder, replicas, length), cwd=ROOT, env=variables, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            wait_until_ready(port, process, folder / "log")
            yield port, variables["RAY_AUTH_TOKEN"]
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def wait_until_ready(port: int, process: subprocess.Popen, log: Path, limit_s: float = 120) -> None:
    """Ask /readyz until it answers 200.

    Raises:
        ServingError: with the end of the server's log.
    """
    begin = time.monotonic()
    while time.monotonic() - begin < limit_s and process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=10).status_code == 200:
                time.sleep(SETTLE_S)
                return
        except httpx.TransportError:
            pass
        time.sleep(0.3)
    raise ServingError("The server did not start: " + log.read_text(errors="replace")[-800:])


def request_bytes(kind: str, port: int, image_id: str, picture: bytes) -> bytes:
    """One whole HTTP request."""
    fields = {"text": "make it blue", "k": 12}
    if kind == "id":
        message = httpx.Request("POST", f"http://127.0.0.1:{port}/v1/search", json={**fields, "gallery_id": image_id})
    else:
        form = {name: str(value) for name, value in fields.items()}
        message = httpx.Request(
            "POST", f"http://127.0.0.1:{port}/v1/search", data=form, files={"image": ("x.png", picture)}
        )
    head = "".join(f"{name}: {value}\r\n" for name, value in message.headers.items())
    return f"POST /v1/search HTTP/1.1\r\n{head}\r\n".encode() + message.read()


async def client(port: int, message: bytes, until: float, times: list[float], failures: list[int]) -> None:
    """Send one request after another over one connection; a connection the server closes is a failure 0."""
    while time.perf_counter() < until:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            await requests_on(reader, writer, message, until, times, failures)
        except (asyncio.IncompleteReadError, ConnectionError):
            failures.append(0)
        writer.close()


async def requests_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: bytes, until: float, times: list[float],
    failures: list[int],
) -> None:  # fmt: skip
    """Requests on one connection until the time is over."""
    while time.perf_counter() < until:
        begin = time.perf_counter()
        writer.write(message)
        head = await reader.readuntil(b"\r\n\r\n")
        await read_body(reader, head.lower())
        times.append(time.perf_counter() - begin)
        if not head.startswith(b"HTTP/1.1 200"):
            failures.append(int(head[9:12]))


async def read_body(reader: asyncio.StreamReader, head: bytes) -> None:
    """Read a body of known length or in chunks."""
    if b"content-length: " in head:
        await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
        return
    while size := int((await reader.readline()).strip(), 16):
        await reader.readexactly(size + 2)
    await reader.readline()


async def load(port: int, message: bytes, clients: int, seconds: float) -> tuple[list[float], list[int]]:
    """Closed-loop load; returns latencies in seconds and failed statuses."""
    times: list[float] = []
    failures: list[int] = []
    until = time.perf_counter() + seconds
    await asyncio.gather(*(client(port, message, until, times, failures) for _ in range(clients)))
    return times, failures


def measure(config: BenchConfig) -> None:
    """Print one line per mode, body and number of clients."""
    gallery = open_index(config.index)
    image_id, picture = gallery.ids[0], gallery.picture(gallery.ids[0])
    say(f"{machine()}; gallery of {len(gallery.ids):,}")
    say("| mode | body | clients | requests/s | p50 ms | p99 ms | failed |")
    say("|---|---|---|---|---|---|---|")
    for mode in config.modes:
        complain(f"starting {mode}")
        with server(mode, config) as (port, _):
            for kind in config.bodies:
                message = request_bytes(kind, port, image_id, picture)
                asyncio.run(load(port, message, max(config.clients), config.warm_up_s))
                for clients in config.clients:
                    times, failures = asyncio.run(load(port, message, clients, config.seconds))
                    p50, p99 = 1000 * np.percentile(times, [50, 99])
                    rate = len(times) / config.seconds
                    say(f"| {mode} | {kind} | {clients} | {rate:.0f} | {p50:.1f} | {p99:.1f} | {len(failures)} |")


def main() -> int:
    """Entry point."""
    config = resolve(BenchConfig, [], sys.argv[1:]).config
    return guarded(lambda: serve_bare(config) if config.role == "bare" else measure(config))


if __name__ == "__main__":
    sys.exit(main())
