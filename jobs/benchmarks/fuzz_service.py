"""Requests that nobody should send, to the whole application in one process: how they are answered, what they leave.

    python jobs/benchmarks/fuzz_service.py [requests=10000] [seed=0] [shards=1] [root=DIR] [checkpoint=DIR] [index=DIR]

Searches, batches, filters, forms, writes, files by URI and paths, drawn by chance: fields of wrong types, filters
nested deep, too long or with another language's words, ids of any Unicode, broken JSON, forms and lines, bodies of a
megabyte. The gallery is one that is written to, made of the index in a temporary folder; with `shards` it lies in so
many searchers, of which one is lost now and then (`partial`). A second one by name is the frozen index. Prints how
often each status was answered, and the memory of the process on the way. Ends with 1 when an answer was no success and
no problem document, told a path or a trace, or had a status of 500 or more, but the 503 of a searcher that is away.
"""

import asyncio
import json
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from cirray.catalogue.searcher import Searcher
from cirray.cli.main import guarded, resolve
from cirray.core.fields import Place
from cirray.core.log import say
from cirray.core.places import Run
from cirray.image_text import load_models
from cirray.index.shards import Shard
from cirray.pipelines.search.living import run_gallery
from cirray.pipelines.search.living_config import GalleryRun
from cirray.search_engine import SearchEngine
from cirray.serving.api import make_api
from cirray.serving.config import ServeArgs
from cirray.serving.gathering import Ask, Gathering, Line
from cirray.serving.service import DirectService

JSON = {"content-type": "application/json"}
LINES = {"content-type": "application/x-ndjson"}
MB = 2**20
NAMES = ("id", "price", "kind", "sold", "prise", "__class__", "_rowid", "m_price", "`a b`", "vector", "ünï")
WORDS = ("and", "or", "not", "in", "is null", "contains", "starts with", "=", "<", ">=", "(", ")", "[", "]", ",", "--")
STRANGE = (
    "\x00", "'; drop table images; --", '" or 1=1', "../../etc/passwd", "${jndi:ldap://x}", "{{7*7}}", "%00", "\ud800",
    "\u202e\u0301", "𝔘𝔫𝔦", "日本 🦀", "a" * 5_000, "'" * 99, "\r\nx-evil: 1", "<script>", "1e999", "NaN", "null",
    " ", "",
)  # fmt: skip


class FuzzConfig(Run):
    """What is sent."""

    checkpoint: Place = "@checkpoint"
    index: Place = "@index"
    requests: int = Field(10_000, ge=1)
    seed: int = 0
    shards: int = Field(1, ge=1)


@dataclass
class Seen:
    """What was answered."""

    statuses: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


class Drawer:
    """Draws requests from a seed. Each is a method, a path and what `httpx` takes besides."""

    def __init__(self, seed: int, ids: list[str], folder: str) -> None:
        """Know some ids that exist, and a folder that the service may read."""
        self._chance, self._ids, self._folder = random.Random(seed), ids[:20], folder

    def __call__(self) -> tuple[str, str, dict[str, Any]]:
        """The next request."""
        kinds = (
            self.search,
            self.search,
            self.batch,
            self.facets,
            self.form,
            self.write,
            self.lines,
            self.bytes,
            self.load,
            self.path,
        )
        method, path, content = self._chance.choice(kinds)()
        if self._chance.random() < 0.2:  # a gallery by its name, or by none that there is
            name = self._chance.choice(("default", "frozen", "frozen", quoted(self.text()[:40])))
            path = path.replace("/v1/", f"/v1/galleries/{name}/", 1)
        return method, path, content

    def text(self) -> str:
        """A text that is likely to be too much."""
        chance = self._chance
        if chance.random() < 0.5:
            return chance.choice(STRANGE)
        return "".join(
            chr(chance.choice((chance.randrange(128), chance.randrange(0xD800)))) for _ in range(chance.randrange(40))
        )

    def odd(self) -> Any:
        """A value of any type."""
        chance = self._chance
        plain: tuple[Any, ...] = (
            None,
            True,
            -1,
            0,
            2**70,
            1e308,
            float("inf"),
            [],
            {},
            [[]],
            {"x": 1},
            [None] * 9,
            "x",
        )
        return chance.choice((*plain, self.text(), [self.text()], {self.text(): self.text()}))

    def filter(self) -> str:
        """A filter, right or wrong."""
        chance, shape = self._chance, self._chance.randrange(6)
        if shape == 0:
            return self.text()
        if shape == 1:
            return "(" * chance.choice((5, 40, 5_000)) + "id is null" + ")" * chance.choice((5, 40))
        if shape == 2:
            return "not " * chance.choice((3, 40, 2_000)) + "id is null"
        if shape == 3:
            return " or ".join([f"price < {chance.randrange(9)}"] * chance.choice((1, 300, 2_000)))
        if shape == 4:
            return (
                f"{chance.choice(NAMES)} {chance.choice(('=', '<', 'contains', 'in'))} {chance.choice(self._values())}"
            )
        return " ".join(chance.choice((*NAMES, *WORDS, *self._values())) for _ in range(chance.randrange(12)))

    def _values(self) -> tuple[str, ...]:
        return (
            "1",
            "-1e400",
            "9" * 50,
            "2025-13-45",
            "'x'",
            '"x',
            "true",
            "null",
            "['a', 1]",
            "[]",
            repr(self.text()[:20]),
        )

    def id(self) -> str:
        """An id, of an image or of none."""
        return self._chance.choice((self._chance.choice(self._ids), self.text()))

    def query(self) -> dict[str, Any]:
        """Fields of a search: some fit, some do not."""
        chance = self._chance
        usual: dict[str, Callable[[], Any]] = {
            "text": lambda: chance.choice(("blue", self.text())), "gallery_id": self.id, "filter": self.filter,
            "k": lambda: chance.choice((1, 5, 0, 10**9)), "offset": lambda: chance.choice((0, 7, 9_999, -1)),
            "box": lambda: [chance.choice((0, 0.5, 1, -1, 1e9)) for _ in range(chance.choice((4, 4, 3)))],
            "weight": lambda: chance.choice((0, 0.5, 1, 7)), "exclude": lambda: [self.id()] * chance.choice((1, 1_001)),
            "fields": lambda: [chance.choice(NAMES)], "image": lambda: chance.choice(("aGVsbG8=", "@@", self.text())),
            "references": lambda: [{"gallery_id": self.id(), "weight": chance.choice((1, 0))}] * chance.choice((1, 9)),
            "negative": lambda: {chance.choice(("text", "gallery_id", "image")): self.id()}, "unknown": self.odd,
        }  # fmt: skip
        some = chance.sample(sorted(usual), chance.randrange(1, 5))
        return {name: self.odd() if chance.random() < 0.15 else usual[name]() for name in some}

    def search(self) -> tuple[str, str, dict[str, Any]]:
        """One query as JSON."""
        return "POST", "/v1/search", {"content": dumped(self.query()), "headers": JSON}

    def batch(self) -> tuple[str, str, dict[str, Any]]:
        """Several queries."""
        chance = self._chance
        items = [self.odd() if chance.random() < 0.2 else self.query() for _ in range(chance.choice((0, 1, 3, 65)))]
        return "POST", "/v1/search:batch", {"content": dumped({"queries": items}), "headers": JSON}

    def facets(self) -> tuple[str, str, dict[str, Any]]:
        """A filter in the address."""
        return "GET", f"/v1/facets?filter={quoted(self.filter())}", {}

    def form(self) -> tuple[str, str, dict[str, Any]]:
        """A search as a form, or something like it."""
        chance = self._chance
        parts = [part(name, dumped(value) if not isinstance(value, str) else value.encode("utf-8", "surrogatepass"))
                 for name, value in self.query().items()]  # fmt: skip
        if chance.random() < 0.5:
            parts.append(part("image", chance.choice((b"", b"\x89PNG\r\n\x1a\n", os.urandom(50))), self.text()[:40]))
        body = b"".join(parts) + chance.choice((b"--b--\r\n", b"", b"--b", b"--c--\r\n"))
        kind = chance.choice(("b", "b", "c", "", '"', "b" * 300))
        path = chance.choice(("/v1/search", "/v1/images", "/v1/images/x"))
        method = "PUT" if path.endswith("x") else "POST"
        return method, path, {"content": body, "headers": {"content-type": f"multipart/form-data; boundary={kind}"}}

    def write(self) -> tuple[str, str, dict[str, Any]]:
        """An image put, or taken away."""
        chance, path = self._chance, f"/v1/images/{quoted(self.text())}"
        if chance.random() < 0.3:
            return "DELETE", path, {}
        kind = chance.choice(
            ("image/png", "application/octet-stream", "text/plain", self.text()[:9].encode("ascii", "ignore").decode())
        )
        headers = {"content-type": kind.strip().replace("\r", "").replace("\n", "").replace("\x00", "")}
        return "PUT", path, {"content": chance.choice((b"", b"GIF89a", os.urandom(90))), "headers": headers}

    def lines(self) -> tuple[str, str, dict[str, Any]]:
        """Many images as lines."""
        chance = self._chance
        items = []
        for _ in range(chance.choice((0, 1, 3, 40))):
            value: dict[str, Any] = {"id": self.id()}
            value |= chance.choice(
                ({"vector": [0.1] * 3}, {"vector": self.odd()}, {"delete": self.odd()}, {"image": self.text()})
            )
            items.append(chance.choice((dumped(value), dumped(self.odd()), b"{" + dumped(value))))
        return "POST", "/v1/images", {"content": b"\n".join(items), "headers": LINES}

    def bytes(self) -> tuple[str, str, dict[str, Any]]:
        """A body that is nothing, or far too much."""
        bodies = (
            b"",
            b"\xff\xfe",
            b"[" * 100_000,
            b'{"filter": "' + b"(" * MB + b'"}',
            os.urandom(300),
            b'{"k": 1' + b"0" * 5_000 + b"}",
        )
        path = self._chance.choice(("/v1/search", "/v1/search:batch", "/v1/images"))
        return "POST", path, {"content": self._chance.choice(bodies), "headers": self._chance.choice((JSON, LINES, {}))}

    def load(self) -> tuple[str, str, dict[str, Any]]:
        """A file that the service is to read, of the folder that it may read or not."""
        chance = self._chance
        names = ("good", "torn", "text", "none", "", "..", "../good", self.text()[:40])
        uris = (f"{self._folder}/{chance.choice(names)}.parquet", self._folder, self.text(), "s3://bucket/v.parquet")
        body: dict[str, Any] = {"uri": chance.choice((*uris, *uris, self.odd()))}
        body |= {name: chance.choice((0, 1, 30, -1, 10**9, self.odd())) for name in ("offset", "limit")}
        body = {name: body[name] for name in chance.choice((("uri",), ("uri", "limit"), ("uri", "offset"), ()))}
        path = chance.choice(("/v1/images:load", "/v1/images:load", "/v1/images:loads"))
        return "POST", path, {"content": dumped(body), "headers": chance.choice((JSON, JSON, LINES))}

    def path(self) -> tuple[str, str, dict[str, Any]]:
        """Addresses and methods that are not offered, pictures of any id."""
        chance = self._chance
        paths = (
            f"/v1/images/{quoted(self.id())}?size={quoted(self.text()[:20])}", f"/{quoted(self.text())}", "/v1/search",
            f"/v1/gallery?limit={quoted(str(self.odd())[:99])}&offset={quoted(str(self.odd())[:99])}",
            f"/v1/examples?gallery_id={quoted(self.id())}", f"/static/{quoted(self.text())}", "/v1/galleries",
            "/v1/galleries/frozen", "/readyz", "/version", f"/v1/galleries/{quoted(self.text())}",
            "/v1/images/" + "%2e%2e%2f" * 9,
        )  # fmt: skip
        return chance.choice(("GET", "GET", "HEAD", "OPTIONS", "PATCH", "DELETE")), chance.choice(paths), {}


def dumped(value: Any) -> bytes:
    """JSON that may hold what UTF-8 may not."""
    return json.dumps(value).encode("utf-8", "surrogatepass")


def quoted(text: str) -> str:
    """Any text in an address."""
    return quote(text.encode("utf-8", "surrogatepass"), safe="")


def part(name: str, value: bytes, file: str | None = None) -> bytes:
    """One part of a form."""
    named = "" if file is None else f'; filename="{file}"'
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
    return head.encode("utf-8", "surrogatepass") + value + b"\r\n"


def fault(reply: httpx.Response) -> str:
    """What is wrong with an answer; "" for one that is as promised."""
    away = reply.status_code == 503 and b"not answer now" in reply.content
    if reply.status_code >= 500 and not away:
        return f"answered {reply.status_code}: {reply.text[:300]}"
    if reply.status_code < 400 or reply.request.method == "HEAD":
        return ""
    if reply.headers.get("content-type") != "application/problem+json" or not reply.json().get("detail"):
        return f"{reply.status_code} without a problem document: {reply.text[:300]}"
    named = reply.request.url.path.endswith("images:load")  # by the caller, who is told the path that was asked for
    words = ("Traceback", "site-packages", *(() if named else ("/tmp/",)))
    told = next((word for word in words if word in reply.json()["detail"]), "")
    return f"{reply.status_code} tells {told!r}: {reply.text[:300]}" if told else ""


def resident_mb() -> float:
    """Memory of this process in MB."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MB


async def fuzz(app: Any, draw: Drawer, count: int, told: Callable[[int, Seen], None]) -> Seen:
    """Send requests one after the other; `told` is called after every tenth part of them."""
    seen, transport = Seen(), httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
        for number in range(1, count + 1):
            method, path, content = draw()
            reply = await client.request(method, path, **content)
            seen.statuses[reply.status_code] += 1
            if wrong := fault(reply):
                seen.faults.append(f"{method} {path[:200]} {shown(content)}: {wrong}")
            if number % max(1, count // 10) == 0:
                told(number, seen)
    return seen


def shown(content: Mapping[str, Any]) -> str:
    """A request's body in a line."""
    return repr(content.get("content", b""))[:300]


def searched(config: FuzzConfig, place: str, lost: set[int]) -> SearchEngine:
    """The engine over a gallery: in this process, or in searchers, each asked in a thread, some of which are lost."""
    if config.shards == 1:
        return SearchEngine.open(config.checkpoint, place)
    encoder, vision, transform = load_models(config.checkpoint)

    def asks(number: int) -> Ask:
        searcher = Searcher(Shard(number, config.shards))

        async def ask(*call: Any) -> Any:
            if number in lost:
                raise RuntimeError("the searcher died")
            return await asyncio.to_thread(searcher.answer, *call)

        return ask

    line = Line([asks(number) for number in range(config.shards)], 5.0)
    return SearchEngine(encoder, vision, transform, Gathering(place, encoder.index_digests, vision.digest, line, True))


def written_files(folder: Path, width: int) -> None:
    """A Parquet file of vectors, one that is torn, and one that is none."""
    folder.mkdir()
    rows = {"id": [f"row {number}" for number in range(50)], "vector": [[0.5] * width] * 50}
    pq.write_table(pa.table(rows), folder / "good.parquet")
    (folder / "torn.parquet").write_bytes((folder / "good.parquet").read_bytes()[:-20])
    (folder / "text.parquet").write_bytes(b"PAR1 no table")


def run(config: FuzzConfig) -> int:
    """All requests; 1 when any answer was against the rules."""
    with tempfile.TemporaryDirectory() as folder:
        place, inbox, lost = f"{folder}/gallery", Path(folder) / "inbox", set[int]()
        columns = {"price": "number", "kind": "text", "sold": "flag"}
        run_gallery(GalleryRun(index=config.index, checkpoint=config.checkpoint, columns=columns, out=place))
        engine, frozen = searched(config, place, lost), SearchEngine.open(config.checkpoint, config.index)
        service, other = DirectService(engine, gallery=place), DirectService(frozen)
        written_files(inbox, service.writer.shape[0] * service.writer.shape[1] if service.writer else 0)
        args = ServeArgs(writes=True, max_body_mb=2, load_from=(str(inbox),))
        app = make_api(lambda: service, args, galleries=lambda: {"frozen": other})

        def told(number: int, seen: Seen) -> None:
            say(f"{number:,} requests, {resident_mb():,.0f} MB, {dict(sorted(seen.statuses.items()))}")
            assert engine.follower is not None
            engine.follower.poll()
            lost.symmetric_difference_update({number % config.shards} if config.shards > 1 else ())

        seen = asyncio.run(fuzz(app, Drawer(config.seed, list(frozen.gallery.ids), str(inbox)), config.requests, told))
    for line in seen.faults[:20]:
        say(line)
    say(f"{len(seen.faults)} of {config.requests:,} answers were against the rules")
    return int(bool(seen.faults))


if __name__ == "__main__":
    sys.exit(guarded(lambda: run(resolve(FuzzConfig, [], sys.argv[1:]).config)))
