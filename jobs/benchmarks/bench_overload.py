"""What the service does when too much is asked of it: three times its capacity, slow bodies, slow headers, bad headers.

    python jobs/benchmarks/bench_overload.py [mode=serve|fastpath] [seconds=20] [factor=3]

Open loop: requests leave on a clock, answered or not. Server and clients share this machine.
"""

import asyncio
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from bench_serve import BenchConfig, load, read_body, request_bytes, server
from machine import machine
from pydantic import Field

from cirray.cli.main import guarded, resolve
from cirray.core.log import complain, say
from cirray.index.store import open_index

PATIENCE_S = 30.0
HOST = "127.0.0.1"


class OverloadConfig(BenchConfig):
    """What is done to the service."""

    mode: str = "serve"
    factor: float = Field(3.0, gt=0)
    slow: int = Field(120, ge=0)
    headers: int = Field(300, ge=0)


@dataclass
class Seen:
    """Replies of one run: status -> count (`hung` and `cut` too), latencies of good ones, replies without the rules."""

    statuses: Counter = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)
    odd: Counter = field(default_factory=Counter)

    def line(self, seconds: float) -> str:
        """In words."""
        p50, p99 = 1000 * np.percentile(self.times or [0.0], [50, 99])
        good = self.statuses[200] / seconds
        odd = f"; against the rules: {dict(self.odd)}" if self.odd else ""
        return f"{good:.0f} good/s, p50 {p50:.0f} ms, p99 {p99:.0f} ms, {dict(self.statuses)}{odd}"


async def ask(port: int, message: bytes, seen: Seen, idle: deque | None = None) -> None:
    """One request on an idle connection, or a new one."""
    begin = time.perf_counter()
    try:
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = idle.popleft() if idle else await asyncio.open_connection(HOST, port)
            try:
                writer.write(message)
                head = await reader.readuntil(b"\r\n\r\n")
                await read_body(reader, head.lower())
            except BaseException:
                writer.close()
                raise
    except TimeoutError:
        seen.statuses["hung"] += 1
        return
    except (asyncio.IncompleteReadError, ConnectionError):
        seen.statuses["cut"] += 1
        return
    if idle is None or b"connection: close" in head.lower():
        writer.close()
    else:
        idle.append((reader, writer))
    status = int(head[9:12])
    seen.statuses[status] += 1
    if status == 200:
        seen.times.append(time.perf_counter() - begin)
    elif b"problem+json" not in head or (status in (429, 503) and b"retry-after" not in head.lower()):
        seen.odd[status] += 1


async def at_rate(port: int, message: bytes, rate: float, seconds: float) -> Seen:
    """Requests by the clock; waits for the last reply."""
    seen, tasks, begin = Seen(), set(), time.perf_counter()
    idle: deque = deque()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, begin + number / rate - time.perf_counter()))
        task = asyncio.create_task(ask(port, message, seen, idle))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return seen


async def recovery(port: int, message: bytes, bound_s: float) -> float:
    """Seconds until a request is answered 200 within a bound, asked one after another."""
    begin = time.perf_counter()
    while time.perf_counter() - begin < 60:
        seen = Seen()
        await ask(port, message, seen)
        if seen.times and seen.times[0] < bound_s:
            return time.perf_counter() - begin
        await asyncio.sleep(0.05)
    return float("inf")


async def drips(port: int, start: bytes, count: int, seconds: float) -> Counter:
    """Connections that send `start` and then a byte every half second; how they ended."""
    ended: Counter = Counter()

    async def one() -> None:
        try:
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(start)
            until = time.perf_counter() + seconds
            while time.perf_counter() < until:
                writer.write(b"x")
                await writer.drain()
                try:
                    data = await asyncio.wait_for(reader.read(200), 0.5)
                except TimeoutError:
                    continue
                ended[data[9:12].decode() or "closed"] += 1
                return
            ended["still open"] += 1
        except OSError:
            ended["closed"] += 1

    await asyncio.gather(*(one() for _ in range(count)))
    return ended


async def beside(nuisance: Callable[[], Awaitable[Counter]], port: int, message: bytes, seconds: float) -> str:
    """Eight ordinary clients while somebody is a nuisance."""
    task = asyncio.ensure_future(nuisance())
    await asyncio.sleep(2.0)
    times, failures = await load(port, message, 8, seconds)
    p50, p99 = 1000 * np.percentile(times or [0.0], [50, 99])
    ordinary = f"{len(times) / seconds:.0f} requests/s, p50 {p50:.0f} ms, p99 {p99:.0f} ms, failed {Counter(failures)}"
    return f"{ordinary}; the others: {dict(await task)}"


def memory_mb(marks: tuple[str, ...] = ("ray::ServeReplica", "ray::ProxyActor", "haproxy")) -> float:
    """Resident memory of all replicas and proxies on this machine."""
    total = 0.0
    for folder in Path("/proc").iterdir():
        try:
            line = (folder / "cmdline").read_bytes()
            if folder.name.isdigit() and any(mark.encode() in line[:120] for mark in marks):
                total += int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        except OSError:
            continue
    return total


async def trial(config: OverloadConfig, port: int, message: bytes) -> None:
    """Everything, one line each."""
    times, _ = await load(port, message, 32, config.warm_up_s)
    times, failures = await load(port, message, 32, config.seconds / 2)
    capacity, before = len(times) / (config.seconds / 2), memory_mb()
    p50, p99 = 1000 * np.percentile(times, [50, 99])
    say(f"- closed loop, 32 clients: {capacity:.0f}/s, p50 {p50:.0f} ms, p99 {p99:.0f} ms, failed {len(failures)}")
    begin = time.perf_counter()
    seen = await at_rate(port, message, config.factor * capacity, config.seconds)
    took = time.perf_counter() - begin
    goodput = seen.statuses[200] / took / capacity
    say(f"- {config.factor:g} x capacity for {config.seconds:g} s (over after {took:.1f} s): {seen.line(took)}")
    again = await recovery(port, message, 0.5)
    say(f"- goodput {goodput:.0%}, recovery {again:.2f} s, memory +{memory_mb() - before:.0f} MB")
    head = b"POST /v1/search HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    body = head + b"content-length: 5000\r\n\r\n{"
    alone = await beside(lambda: drips(port, b"", 0, 1), port, message, 5)
    say(f"- 8 clients alone: {alone}")
    say(
        f"- beside {config.slow} slow bodies: "
        + await beside(lambda: drips(port, body, config.slow, 25), port, message, 5)
    )
    slow_heads = await beside(lambda: drips(port, head + b"x-slow: ", config.headers, 25), port, message, 5)
    say(f"- beside {config.headers} slow headers: {slow_heads}")
    for name in (b"x-request-id", b"x-session-id", b"x-other", b"serve_multiplexed_model_id"):
        odd = Seen()
        await ask(port, message.replace(b"\r\n", b"\r\n" + name + b": \xff\xfe\r\n", 1), odd)
        say(f"- {name.decode()} that is not UTF-8: {dict(odd.statuses)}")
    odd = Seen()
    await ask(port, message.replace(b"host: 127.0.0.1", b"host: evil.example"), odd)
    say(f"- another Host: {dict(odd.statuses)}{odd.odd or ''}")


def measure(config: OverloadConfig) -> None:
    """One server, all trials."""
    gallery = open_index(config.index)
    image_id = gallery.ids[0]
    complain(f"starting {config.mode}")
    say(f"mode {config.mode}; {machine()}")
    with server(config.mode, config) as (port, _):
        asyncio.run(trial(config, port, request_bytes(config.bodies[0], port, image_id, gallery.picture(image_id))))
        begin = time.perf_counter()
    say(f"- stopped in {time.perf_counter() - begin:.1f} s")


def main() -> int:
    """Entry point."""
    return guarded(lambda: measure(resolve(OverloadConfig, [], sys.argv[1:]).config))


if __name__ == "__main__":
    sys.exit(main())
