"""The page in headless Chromium, with a small retriever in this process (no Ray); skipped without Chromium."""

import asyncio
import io
import json
import runpy
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import uvicorn
from PIL import Image

from cirray.index.exact import ExactIndex
from cirray.index.pictures import open_pictures, write_pictures
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.search.index import run_index
from cirray.search_engine import SearchEngine
from cirray.serving.api import make_api
from cirray.serving.config import ServeArgs, ServingSettings
from cirray.serving.service import DirectService

FIXTURES = Path(__file__).parents[1] / "fixtures"
TINY = SimpleNamespace(**runpy.run_path(str(FIXTURES / "tiny_service.py")))
CHROMIUM = SimpleNamespace(**runpy.run_path(str(FIXTURES / "chromium.py")))
OWN = {
    "a b/pïc 01": ("make it red", "add a star"), "a b/pïc 05": ("turn it green",),
    "plain/00": ("make it red", "add a star"),
}  # fmt: skip
SIZE = 70
CROWD = 10_000
SHAPES = ((40, 32), (32, 40), (60, 20), (20, 90), (36, 36), (90, 30), (30, 45))
"""Widths and heights of the crowd's pictures, one after the other."""


class Recorded(DirectService):
    """Remembers what was asked: reference (an id, or "upload") and text."""

    asked: list = []

    async def answer(self, query):
        first = query.terms[0]
        self.asked.append((first.gallery_id if first.pixels_HWC is None else "upload", first.text))
        return await super().answer(query)


class Site:
    """The application over HTTP, which can be told to be slow or to fail."""

    def __init__(self, service):
        self.service, self.fails, self.delay, self.port = service, 0, 0.0, 0
        self.asked, self.usual = service.asked, service
        self.further = {}
        self.app = make_api(lambda: self.service, ServeArgs(max_body_mb=1), galleries=lambda: self.further)

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http" and scope["path"].startswith(
            ("/v1/search", "/v1/gallery", "/v1/examples", "/version")
        ):
            await asyncio.sleep(self.delay)
            if self.fails:
                await send({"type": "http.response.start", "status": self.fails, "headers": []})
                return await send({"type": "http.response.body", "body": b"upstream"})
        await self.app(scope, receive, send)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/"

    def reset(self):
        self.service, self.fails, self.delay, self.further = self.usual, 0, 0.0, {}
        self.asked.clear()


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    program = CHROMIUM.find()
    if program is None:
        pytest.skip("no Chromium is installed here")
    started = CHROMIUM.Browser(program, tmp_path_factory.mktemp("profile"))
    try:
        started.send("Browser.getVersion")
    except (OSError, RuntimeError) as error:
        pytest.skip(f"the Chromium that is installed here does not start: {error}")
    yield started
    started.close()


@pytest.fixture(scope="session")
def retriever(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    pictures, checkpoint = (
        TINY.write_pictures(root / "pictures", SIZE, False),
        TINY.write_checkpoint(root / "checkpoint"),
    )
    run_index(IndexRun(checkpoint=checkpoint, images=str(pictures), out=str(root / "index")))
    opened = SearchEngine.open(checkpoint, str(root / "index"))
    gallery = replace(opened.gallery, texts=OWN, examples=(("plain/02", "turn it green"), ("plain/04", "make it blue")))
    return SearchEngine(opened.encoder, opened.vision, opened.transform, gallery)


@pytest.fixture(scope="session")
def crowd(retriever, tmp_path_factory):
    """A gallery of ten thousand pictures of all shapes, with random vectors."""
    folder, kinds = tmp_path_factory.mktemp("crowd"), []
    for number, size in enumerate(SHAPES):
        stream = io.BytesIO()
        Image.new("RGB", size, (30 * number, 120, 200 - 20 * number)).save(stream, "PNG")
        kinds.append(stream.getvalue())
    names = write_pictures(folder, (kinds[row % len(kinds)] for row in range(CROWD)))
    tokens = np.random.default_rng(0).normal(size=(CROWD, 3, 8)).astype(np.float16)
    ids = [f"all/{row:05d}" for row in range(CROWD)]
    gallery = replace(
        retriever.gallery, search_index=ExactIndex(ids, tokens), pictures=open_pictures(folder, names),
        patches_NPW=None, texts={}, examples=(), originals=None,
    )  # fmt: skip
    return Recorded(SearchEngine(retriever.encoder, retriever.vision, retriever.transform, gallery))


@contextmanager
def running(made):
    """A site at a port of its own."""
    server = uvicorn.Server(uvicorn.Config(made, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    made.port = server.servers[0].sockets[0].getsockname()[1]
    yield made
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="session")
def site(browser, retriever):
    with running(Site(Recorded(retriever, ServingSettings(max_k=50)))) as made:
        yield made


@pytest.fixture(scope="session")
def other_site(browser):
    """Runs another service at a port of its own."""
    return lambda engine: running(Site(Recorded(engine)))


@pytest.fixture(params=["desktop", "phone"])
def screen(request):
    return {"desktop": CHROMIUM.DESKTOP, "phone": CHROMIUM.PHONE}[request.param]


@pytest.fixture
def visit(browser, site):
    """Open an address of the page in a fresh window; scripts must not have thrown when the test ends."""
    tabs = []

    def open_page(address="", screen=CHROMIUM.DESKTOP):
        tab = browser.tab(screen)
        tabs.append(tab)
        tab.goto(site.url + address)
        return tab

    site.reset()
    yield open_page
    site.reset()
    failures = [failure for tab in tabs for failure in tab.failures]
    for tab in tabs:
        tab.close()
    assert failures == []


@pytest.fixture
def phone():
    return CHROMIUM.PHONE


@pytest.fixture(scope="session")
def upload(tmp_path_factory):
    """A picture that is not in the gallery, 300 x 900: much taller than wide."""
    path = tmp_path_factory.mktemp("upload") / "tall one.png"
    path.write_bytes(TINY.picture(999, (300, 900)))
    return path


class User:
    """What a person does on the page, in steps that wait for what they see."""

    def __init__(self, tab):
        self.tab = tab

    def gallery(self):
        self.tab.wait(
            "document.querySelectorAll('#grid:not(.answers) .cell').length >= 8"
            " && !document.querySelector('#grid').inert"
        )

    def answers(self, text):
        title = json.dumps(f"“{text}”")
        self.tab.wait(
            "document.querySelector('#grid.answers .cell') && !document.querySelector('#grid').inert"
            f" && document.querySelector('#title').textContent === {title}"
        )

    def write(self, text):
        self.tab.js("document.querySelector('#text').value = ''; document.querySelector('#text').focus()")
        self.tab.type(text)

    def search(self, text):
        self.write(text)
        self.tab.click("#submit")
        self.answers(text)

    def upload(self, path):
        self.tab.choose("#file", path)
        self.tab.wait(f"document.querySelector('#name').textContent === {json.dumps(path.name)}")
        self.tab.wait("document.querySelector('#enlarge img')?.naturalWidth")

    def back(self):
        self.tab.js("history.back()")

    def shown(self):
        """Reference name, text, answers' ids: what the page says at this moment."""
        return self.tab.js(
            "[document.querySelector('#name').textContent, document.querySelector('#text').value,"
            " [...document.querySelectorAll('#grid .cell')].map(cell => cell.dataset.id)]"
        )

    def trail(self):
        """Texts of the trail, the one on display in brackets, "..." for the next one."""
        return self.tab.js(
            "[...document.querySelectorAll('#trail li > *')].map(e => e.matches('.pending') ? '...'"
            " : e.ariaCurrent ? `[${e.textContent}]` : e.textContent)"
        )


@pytest.fixture
def user(visit):
    return lambda address="", screen=CHROMIUM.DESKTOP: User(visit(address, screen))


@pytest.fixture
def opened(user, screen):
    one = user("", screen)
    one.gallery()
    return one
