"""What HTTP costs on the fast path: the service, a bare echo in its place, and an echo in C, behind the same HAProxy.

    python jobs/benchmarks/bench_http.py [root=DIR] [seconds=5] [clients=[1,8,32]] [replicas=[1,2]] [rounds=1] \
        [py_spy=PROGRAM]

All in one run and by the same load tool (wrk, which must be installed), with the bound of the model in one process
before and after. `echo` is an ASGI application that answers bytes of the same length, in Ray Serve with the same
settings; `c` is HAProxy itself answering them, behind HAProxy with the file that Ray wrote for the echo. Processor time
is that of a mode's own processes in microseconds a request, which other work on the machine hardly changes; wrk's is
told too, since it takes one of the same cores. With `py_spy` a replica is sampled at the most clients, and its time
told by whose code it is in.
"""

import asyncio
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from bench_serve import BenchConfig, free_port, server
from machine import machine
from pydantic import Field
from sampled import Sampler, thread_seconds

from cirray.cli.main import guarded, resolve
from cirray.core.errors import ServingError
from cirray.core.log import complain, say
from cirray.index.store import open_index
from cirray.serving.haproxy import haproxy

TICKS = os.sysconf("SC_CLK_TCK")
KINDS = {"ray::ServeReplica": "replica", "haproxy": "haproxy", "ray::HAProxyManager": "manager"}
_SERVER = re.compile(r"(?m)^(    server SERVE_REPLICA\S+ )\S+")
_WRK = {"rate": r"Requests/sec: +([\d.]+)", "p50": r"50% +([\d.]+)(\w+)", "p99": r"99% +([\d.]+)(\w+)"}


class HttpConfig(BenchConfig):
    """What is measured."""

    modes: tuple[str, ...] = ("service", "echo", "c")
    replicas: tuple[int, ...] = (1,)
    rounds: int = Field(1, ge=1)
    py_spy: str = ""
    """py-spy's program; empty: nothing is sampled."""
    stacks: str = ""
    """File that keeps the sampled stacks of the last one; empty: none."""


@dataclass(frozen=True)
class Load:
    """What wrk saw: requests a second, latencies in ms, and answers that were none."""

    rate: float
    p50: float
    p99: float
    failed: str
    seconds: float
    """Processor time of wrk itself."""


def wrk(script: Path, port: int, clients: int, seconds: float) -> Load:
    """One closed loop by wrk."""
    url = f"http://127.0.0.1:{port}/v1/search"
    command = ["wrk", "-t1", f"-c{clients}", f"-d{max(1, round(seconds))}s", "--latency", "-s", str(script), url]
    before = _children_s()
    done = subprocess.run(command, capture_output=True, text=True)
    text, used = done.stdout, _children_s() - before
    found = {name: match for name, pattern in _WRK.items() if (match := re.search(pattern, text))}
    if len(found) < len(_WRK):
        raise ServingError(f"wrk said: {text[-300:]} {done.stderr[-300:]}")
    unit = {"us": 0.001, "ms": 1.0, "s": 1000.0}
    p50, p99 = (float(found[name][1]) * unit[found[name][2]] for name in ("p50", "p99"))
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    cut = re.search(r"Socket errors: (.*)", text)
    faults = ", ".join(item[1] for item in (failed, cut) if item) or "0"
    return Load(float(found["rate"][1]), p50, p99, faults, used)


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def marked(mark: str) -> Iterator[tuple[Path, str]]:
    """Folders in /proc of the processes whose environment holds a mark, and their kind."""
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdigit() and mark.encode() in (folder / "environ").read_bytes():
                line = (folder / "cmdline").read_bytes().decode("utf-8", "replace")
                yield folder, next((name for begin, name in KINDS.items() if begin in line[:200]), "others")


def spent(mark: str) -> dict[str, float]:
    """Processor seconds of the processes with a mark, by kind."""
    found: defaultdict[str, float] = defaultdict(float)
    for folder, kind in marked(mark):
        with suppress(OSError):
            parts = (folder / "stat").read_text().rpartition(")")[2].split()
            found[kind] += (int(parts[11]) + int(parts[12])) / TICKS
    return found


def bounds(config: HttpConfig, seconds: float) -> Iterator[str]:
    """What the model and the index do in this process, one query a pass and in batches of 32: lines of the table."""
    import torch

    from cirray.search_engine import SearchEngine

    torch.set_num_threads(1)
    engine = SearchEngine.open(config.checkpoint, config.index, kept_references=64)
    queries = [engine.prepare("make it blue", gallery_id=engine.gallery.ids[0], k=12) for _ in range(32)]
    for size in (1, 32):
        engine.search_many(queries[:size])
        times, begin, cpu = list[float](), time.perf_counter(), time.process_time()
        while time.perf_counter() - begin < seconds:
            start = time.perf_counter()
            engine.search_many(queries[:size])
            times.append(1000 * (time.perf_counter() - start))
        rate, spent_s = size * len(times) / (time.perf_counter() - begin), time.process_time() - cpu
        p50, p99 = sorted(times)[len(times) // 2], sorted(times)[len(times) * 99 // 100]
        used = 1e6 * spent_s / (size * len(times))
        yield f"| bound, passes of {size} | | {rate:.0f} | {p50:.1f} | {p99:.1f} | | {used:.0f} |"


@contextmanager
def echo_in_c(settings: Path, length: int, mark: str) -> Iterator[int]:
    """HAProxy that answers bytes, behind HAProxy with the settings of another one; yields the port."""
    port, inner = free_port(), free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = settings.read_text().replace(str(settings.parent), str(folder))
        text = re.sub(r"(?m)^frontend prometheus\n(    .*\n)+|^listen stats\n(  .*\n?)+", "", text)
        text = re.sub(r"(?m)^    server SERVE_PROXY.*$|^    errorfile.*$|^    load-server-state.*$", "", text)
        text = re.sub(r"(?m)(^frontend http_frontend\n    bind )\S+", rf"\g<1>127.0.0.1:{port}", text)
        (folder / "outer.cfg").write_text(_SERVER.sub(rf"\g<1>127.0.0.1:{inner}", text))
        (folder / "body").write_bytes(b"x" * length)
        (folder / "inner.cfg").write_text(
            "global\n    nbthread 1\n    tune.bufsize 131072\ndefaults\n    mode http\n    timeout connect 5s\n"
            f"    timeout client 30s\n    timeout server 30s\nfrontend echo\n    bind 127.0.0.1:{inner}\n"
            f"    http-request return status 200 content-type application/json file {folder / 'body'}\n"
        )
        environment = {**os.environ, "BENCH_MARK": mark}
        started = [
            subprocess.Popen([haproxy(), "-db", "-f", str(folder / f"{part}.cfg")], env=environment,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for part in ("inner", "outer")
        ]  # fmt: skip
        try:
            time.sleep(2.0)
            yield port
        finally:
            for process in started:
                process.terminate()
                process.wait()


def row(mode: str, config: HttpConfig, script: Path, port: int, mark: str) -> None:
    """Print the lines of one running server."""
    wrk(script, port, max(config.clients), config.warm_up_s)
    for clients in config.clients:
        before = spent(mark)
        seen = wrk(script, port, clients, config.seconds)
        used = {kind: 1e6 * (s - before[kind]) / (seen.rate * config.seconds) for kind, s in spent(mark).items()}
        costs = ", ".join(f"{kind} {value:.0f}" for kind, value in sorted(used.items()) if value >= 1)
        costs += f", wrk {1e6 * seen.seconds / (seen.rate * config.seconds):.0f}"
        say(f"| {mode} | {clients} | {seen.rate:.0f} | {seen.p50:.1f} | {seen.p99:.1f} | {seen.failed} | {costs} |")


def tell_parts(mode: str, config: HttpConfig, script: Path, port: int, mark: str) -> None:
    """Print where the time of a replica goes under the load of the most clients: one line."""
    replica = next((int(folder.name) for folder, kind in marked(mark) if kind == "replica"), None)
    if not config.py_spy or replica is None:
        return
    before, sampler = thread_seconds(replica, TICKS), Sampler(config.py_spy, replica, config.seconds, config.stacks)
    seen = wrk(script, port, max(config.clients), config.seconds)
    used = {name: s - before.get(name, 0.0) for name, s in thread_seconds(replica, TICKS).items()}
    python = max(used.values())
    unit = 1e6 / (seen.rate * config.seconds)
    parts = [f"{name} {share * python * unit:.0f}" for name, share in sampler.shares().items()]
    parts.append(f"threads of C++ {(sum(used.values()) - python) * unit:.0f}")
    say(f"{mode}, {max(config.clients)} clients, microseconds of a replica: {', '.join(parts)}")


def tell_bound(config: HttpConfig) -> None:
    """Print the bounds."""
    for line in bounds(config, config.seconds):
        say(line)


def written_settings(mark: str) -> Path:
    """The file that Ray wrote for the HAProxy of a server."""
    for folder, _ in marked(mark):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            if "haproxy" in words[0] and "-f" in words:
                return Path(words[words.index("-f") + 1])
    raise ServingError("No HAProxy of the echo is running.")


def run_modes(config: HttpConfig, folder: Path, script: Path, length: int) -> None:
    """One round: every mode in turn."""
    for replicas in config.replicas:
        if "service" in config.modes:
            complain(f"starting the service, replicas: {replicas}")
            with server("fastpath", config, replicas) as (port, mark):
                row(f"service, replicas: {replicas}", config, script, port, mark)
                tell_parts(f"service, replicas: {replicas}", config, script, port, mark)
    if not {"echo", "c"} & set(config.modes):
        return
    complain("starting the echo")
    with server("echo", config, length=length) as (port, mark):
        if "echo" in config.modes:
            row("echo", config, script, port, mark)
            tell_parts("echo", config, script, port, mark)
        kept = folder / "haproxy"
        shutil.rmtree(kept, ignore_errors=True)
        source = written_settings(mark)
        kept.mkdir()
        (kept / source.name).write_text(source.read_text().replace(str(source.parent), str(kept)))
    if "c" in config.modes:
        with echo_in_c(kept / source.name, length, mark) as port:
            row("c", config, script, port, mark)


def measure(config: HttpConfig) -> None:
    """Print one line a mode and number of clients."""
    if not shutil.which("wrk"):
        raise ServingError("wrk is not installed (Debian's package wrk).")
    image_id = open_index(config.index).ids[0]
    body = json.dumps({"text": "make it blue", "k": 12, "gallery_id": image_id})
    with tempfile.TemporaryDirectory() as name:
        script = Path(name) / "post.lua"
        script.write_text(
            f"wrk.method = 'POST'\nwrk.headers['content-type'] = 'application/json'\nwrk.body = {json.dumps(body)}\n"
        )
        length = answer_length(config, body)
        say(f"{machine()}; answers of {length:,} bytes")
        say("| mode | clients | requests/s | p50 ms | p99 ms | failed | processor us a request |")
        say("|---|---|---|---|---|---|---|")
        for _ in range(config.rounds):
            tell_bound(config)
            run_modes(config, Path(name), script, length)
        tell_bound(config)


def answer_length(config: HttpConfig, body: str) -> int:
    """Bytes of the service's own answer to a body."""
    from cirray.search_engine import SearchEngine
    from cirray.serving.api import make_api
    from cirray.serving.config import ServeArgs
    from cirray.serving.service import DirectService

    service = DirectService(SearchEngine.open(config.checkpoint, config.index))
    app = make_api(lambda: service, ServeArgs())

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.post("/v1/search", content=body, headers={"content-type": "application/json"})

    return len(asyncio.run(ask()).content)


def main(words: Sequence[str]) -> int:
    """Entry point."""
    return guarded(lambda: measure(resolve(HttpConfig, [], list(words)).config))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
