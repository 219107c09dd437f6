"""One tiny retriever for all tests of serving, and a way to ask the application without a server."""

import asyncio
import runpy
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from cirray.pipelines.search.living import run_gallery
from cirray.pipelines.search.living_config import GalleryRun
from cirray.search_engine import SearchEngine
from cirray.serving.api import make_api
from cirray.serving.config import ServeArgs, ServingSettings
from cirray.serving.service import DirectService

TINY = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "tiny_service.py")))


class Caller:
    """Synchronous requests to an ASGI application."""

    def __init__(self, app):
        self.app = app

    def __call__(self, method, path, **content):
        async def ask():
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **content)

        return asyncio.run(ask())

    def search(self, picture=None, **fields):
        if picture is None:
            return self("POST", "/v1/search", json=fields)
        return self("POST", "/v1/search", data=fields, files={"image": ("x", picture)})


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return TINY.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def retriever(tiny):
    return SearchEngine.open(tiny.checkpoint, tiny.index)


@pytest.fixture(scope="session")
def picture():
    return TINY.picture


@pytest.fixture(scope="session")
def write_checkpoint():
    return TINY.write_checkpoint


@pytest.fixture(scope="session")
def written_service(tiny, tmp_path_factory):
    """A service over a gallery that is written to."""
    place = str(tmp_path_factory.mktemp("written") / "gallery")
    columns = {"price": "number", "kind": "text", "sold": "flag"}
    run_gallery(GalleryRun(index=tiny.index, checkpoint=tiny.checkpoint, columns=columns, out=place))
    return DirectService(SearchEngine.open(tiny.checkpoint, place), gallery=place)


@pytest.fixture
def caller_of():
    return Caller


@pytest.fixture
def make_caller(retriever):
    def make(service=None, settings=None, **args):
        chosen = service or DirectService(retriever, settings or ServingSettings(default_k=5, max_k=8))
        return Caller(make_api(lambda: chosen, ServeArgs(**args)))

    return make


@pytest.fixture
def call(make_caller):
    return make_caller()
