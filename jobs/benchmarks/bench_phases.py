"""Where a search request's time goes, phase by phase, in one process and without a network.

    python jobs/benchmarks/bench_phases.py [root=DIR] [checkpoint=DIR] [index=DIR] [repeats=300]

Each line is the median of one phase alone; docs/SERVING.md sets them beside what whole servers reach.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import httpx
import numpy as np
import torch
from machine import machine
from pydantic import Field

from cirray.cli.main import guarded, resolve
from cirray.core.fields import Place
from cirray.core.log import say
from cirray.core.places import Run
from cirray.search_engine import SearchEngine
from cirray.serving.api import make_api
from cirray.serving.bodies import read_search
from cirray.serving.config import ServeArgs, ServingSettings
from cirray.serving.gate import LOOPBACK, Gate, GateRules, Lane
from cirray.serving.service import DirectService
from cirray.types import Ranking, StepTimes

TEXT = "make it blue"


class PhasesConfig(Run):
    """What is measured."""

    checkpoint: Place = "@checkpoint"
    index: Place = "@index"
    repeats: int = Field(300, ge=10)
    batches: tuple[int, ...] = (1, 8, 32)


class Known:
    """A service that knows its one answer: what is left is HTTP."""

    def __init__(self, retriever: SearchEngine) -> None:
        """Answer once, remember it."""
        self.retriever, self.settings, self.writer = retriever, ServingSettings(), None
        self.query = retriever.prepare(TEXT, gallery_id=retriever.gallery.ids[0], k=12)
        found = retriever.search_many([self.query])[0]
        self.ranking = found if isinstance(found, Ranking) else Ranking("", (), (), StepTimes())

    async def prepare(self, make: Callable[[], Any]) -> Any:
        """Nothing is decoded."""
        return self.query, self.retriever.gallery, []

    async def answer(self, query: Any) -> Ranking:
        """Nothing is searched."""
        return self.ranking

    async def shown(self, gallery: Any, ids: Sequence[str], names: Sequence[str]) -> Any:
        """As the service does."""
        return gallery.shown(ids, names)

    async def probe(self) -> None:
        """Always well."""


async def asgi(app: Any, message: httpx.Request) -> None:
    """One request through an ASGI application, as a server would hand it over."""
    headers = [(name.lower(), value) for name, value in message.headers.raw]
    scope = {
        "type": "http", "method": "POST", "path": "/v1/search", "raw_path": b"/v1/search", "query_string": b"",
        "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000), "scheme": "http",
        "root_path": "", "http_version": "1.1", "asgi": {"version": "3.0"},
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": message.content, "more_body": False}

    async def send(answer: dict[str, Any]) -> None:
        if answer["type"] == "http.response.start" and answer["status"] >= 500:
            raise RuntimeError(f"answered {answer['status']}")

    await app(scope, receive, send)


async def parsed(scope: Any, receive: Any, send: Any) -> None:
    """An application that only reads the search."""
    from starlette.requests import Request

    await read_search(Request(scope, receive))


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    """An application that only reads the body and says 200."""
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def median_us(work: Callable[[], Any], repeats: int) -> float:
    """Median microseconds of a call."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return 1e6 * float(np.median(times))


async def median_async_us(work: Callable[[], Awaitable[Any]], repeats: int) -> float:
    """Median microseconds of an awaited call."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        await work()
        times.append(time.perf_counter() - begin)
    return 1e6 * float(np.median(times))


def messages(image_id: str, picture: bytes) -> dict[str, httpx.Request]:
    """The two ways to search."""
    fields, url = {"text": TEXT, "k": 12}, "http://127.0.0.1:8000/v1/search"
    form = {name: str(value) for name, value in fields.items()}
    uploaded = httpx.Request("POST", url, data=form, files={"image": ("x.png", picture)})
    uploaded.read()
    return {"id": httpx.Request("POST", url, json={**fields, "gallery_id": image_id}), "upload": uploaded}


async def http_phases(retriever: SearchEngine, asked: dict[str, httpx.Request], repeats: int) -> None:
    """Lines of everything but the model."""
    known, args = Known(retriever), ServeArgs()
    behind, gate = make_api(lambda: known, args, alone=False), Gate(nothing, Lane(GateRules(hosts=LOOPBACK)))
    real = make_api(lambda: DirectService(retriever), args, alone=False)
    for kind, message in asked.items():
        body = await median_async_us(partial(asgi, parsed, message), repeats)
        whole = await median_async_us(partial(asgi, behind, message), repeats)
        passing = await median_async_us(partial(asgi, gate, message), repeats)
        every = await median_async_us(partial(asgi, real, message), repeats // 5)
        say(f"| {kind}: the gate | {passing:.0f} |")
        say(f"| {kind}: parsing the body ({len(message.content):,} bytes) | {body:.0f} |")
        say(f"| {kind}: the application without parsing, model and index | {whole - body:.0f} |")
        say(f"| {kind}: the whole application, one query a pass | {every:.0f} |")


def measure(config: PhasesConfig) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    retriever = SearchEngine.open(config.checkpoint, config.index, kept_references=64)
    ids = retriever.gallery.ids
    picture = retriever.gallery.picture(ids[0]) or b""
    asked = messages(ids[0], picture)
    say(f"{machine()}; gallery of {len(ids):,}")
    say("| phase | microseconds a query |")
    say("|---|---|")
    say(f"| reading the picture | {median_us(lambda: retriever.prepare(TEXT, picture, k=12), config.repeats):.0f} |")
    for size in config.batches:
        queries = [retriever.prepare(TEXT, gallery_id=ids[at], k=12) for at in range(size)]
        passing = median_us(partial(retriever.search_many, queries), max(10, config.repeats // size)) / size
        say(f"| model and index, {size} a pass: {1e6 / passing:.0f} queries/s | {passing:.0f} |")
    asyncio.run(http_phases(retriever, asked, config.repeats))


def main() -> int:
    """Entry point."""
    return guarded(lambda: measure(resolve(PhasesConfig, [], sys.argv[1:]).config))


if __name__ == "__main__":
    sys.exit(main())
