"""Processes of the service killed while it is asked: what fails, and when it is back.

    python jobs/benchmarks/chaos_service.py [root=DIR] [modes=[serve,fastpath]] [requests=10000] [askers=16]

Two replicas, asked by the package's own client, which asks again where that may help. A replica is killed (SIGKILL)
after a third of the requests; every answer must be what the service said before. Then the entrance is killed: Ray's
proxy, or HAProxy. Prints the requests that failed, the longest wait, and the seconds until the entrance answers again.
"""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import httpx
from bench_serve import BenchConfig, server
from pydantic import Field

from cirray.cli.main import guarded, resolve
from cirray.core.errors import CirrayError, ServingError
from cirray.core.log import complain, say
from cirray.index.store import open_index
from cirray.serving.client import AsyncSearchClient
from cirray.serving.config import OWN_CLUSTER

ENTRANCES = {"serve": "ray::ProxyActor", "fastpath": "haproxy"}
PATIENCE_S = 60.0


class ChaosConfig(BenchConfig):
    """What is asked."""

    modes: tuple[str, ...] = ("serve", "fastpath")
    requests: int = Field(10_000, ge=3)
    askers: int = Field(16, ge=1)


def processes(mark: str, begin: str) -> list[int]:
    """Numbers of the processes with a mark in their environment whose command line begins so (a path before it too)."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and mark.encode() in (folder / "environ").read_bytes():
                words = (folder / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
                found += [int(folder.name)] if Path(words[0].split(":Retriever")[0]).name.startswith(begin) else []
        except OSError:
            continue
    return sorted(found)


async def asked(config: ChaosConfig, port: int, mark: str, ids: tuple[str, ...]) -> None:
    """All requests, with a replica killed on the way; one line."""
    failed, waits, left = list[str](), list[float](), iter(range(config.requests))
    victims = processes(mark, "ray::ServeReplica")
    async with AsyncSearchClient(f"http://127.0.0.1:{port}") as client:
        truth = {name: (await client.search("make it blue", gallery_id=name, k=12)).ranking.ids for name in ids}

        async def asker() -> None:
            for number in left:
                if number == config.requests // 3:
                    os.kill(victims[0], signal.SIGKILL)
                name, begin = ids[number % len(ids)], time.perf_counter()
                try:
                    found = await client.search("make it blue", gallery_id=name, k=12)
                    failed.extend([] if found.ranking.ids == truth[name] else ["another answer"])
                except CirrayError as error:
                    failed.append(str(error))
                waits.append(time.perf_counter() - begin)

        begin = time.perf_counter()
        await asyncio.gather(*(asker() for _ in range(config.askers)))
        seconds = time.perf_counter() - begin
    told = f"; the first: {failed[0]}" if failed else ""
    lost = f"{len(failed)} of {config.requests:,} failed in {seconds:.0f} s"
    say(f"- a replica of {len(victims)} killed: {lost}, longest wait {max(waits):.1f} s{told}")


def until(port: int, status: int, headers: dict[str, str]) -> float:
    """Seconds until an answer of that status comes."""
    begin = time.perf_counter()
    while time.perf_counter() - begin < PATIENCE_S:
        try:
            if (
                httpx.get(f"http://127.0.0.1:{port}/v1/gallery?limit=1", headers=headers, timeout=2).status_code
                == status
            ):
                return time.perf_counter() - begin
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise ServingError(f"No answer of status {status} within {PATIENCE_S:g} s.")


def measure(config: ChaosConfig) -> None:
    """Each mode in turn."""
    ids = open_index(config.index).ids[:16]
    say(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for mode in config.modes:
        complain(f"starting {mode}")
        with server(mode, config, 2, variables=OWN_CLUSTER) as (port, mark):
            say(mode)
            asyncio.run(asked(config, port, mark, ids))
            time.sleep(15)
            for number in processes(mark, ENTRANCES[mode]):
                os.kill(number, signal.SIGKILL)
            say(f"- the entrance killed: answers again after {until(port, 200, {}):.1f} s")
            back = until(port, 421, {"host": "evil.example"})
            say(f"- and refuses other hosts {back:.1f} s later")


if __name__ == "__main__":
    sys.exit(guarded(lambda: measure(resolve(ChaosConfig, [], sys.argv[1:]).config)))
