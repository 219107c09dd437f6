"""A service that serves a name goes over to what the name stands for, and back, while requests go on."""

import asyncio
import time
from pathlib import Path

import httpx
import published
import pytest
import tiny_service

from cirray.cli.main import main
from cirray.core.artifacts import read_manifest
from cirray.index.uses import use_of
from cirray.pipelines.search.config import IndexRun, ModelRun
from cirray.pipelines.search.index import run_index
from cirray.pipelines.search.living import run_gallery
from cirray.pipelines.search.living_config import GalleryRun
from cirray.pipelines.search.models import run_model
from cirray.serving.api import make_api
from cirray.serving.config import ServeArgs
from cirray.serving.loaded import Current
from cirray.serving.service import Workers


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two query sides of one model, and an index and a gallery of a folder."""
    home = tmp_path_factory.mktemp("names")
    tiny_service.write_pictures(home / "pictures", broken=False)
    published.clip(home / "clip")
    for name in ("sum", "slerp"):
        run_model(ModelRun(source=str(home / "clip"), composition=name, out=str(home / name)))
    run_index(IndexRun(checkpoint=str(home / "sum"), images=str(home / "pictures"), out=str(home / "index")))
    run_gallery(GalleryRun(index=str(home / "index"), checkpoint=str(home / "sum"), out=str(home / "gallery")))
    return home


def use(home, *words):
    return main(["gallery", "use", *words, f"--root={home}"])


async def ask(app, method, path, **content):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.request(method, path, **content)


def test_a_name_goes_from_index_to_gallery_to_another_query_side_and_back_with_no_failed_request(home, capsys):
    assert use(home, str(home / "index"), f"--checkpoint={home}/sum") == 0
    name = f"{home}/galleries/live.json"
    assert f"cirray serve --index {name}" in capsys.readouterr().out
    args = ServeArgs(index=name, writes=True)
    current = Current(args, Workers())
    app, done = make_api(lambda: current.loaded, args), asyncio.Event()
    seen = []

    async def search():
        while not done.is_set():
            answer = await ask(app, "POST", "/v1/search", json={"gallery_id": "plain/02", "text": "paint it blue"})
            assert answer.status_code == 200 and len(answer.json()["hits"]) == 12
            seen.append(answer.json()["index_digest"])

    async def change():
        loop, found = asyncio.get_running_loop(), []
        steps = [
            [str(home / "gallery"), f"--checkpoint={home}/sum"],
            [str(home / "gallery"), f"--checkpoint={home}/slerp"],
        ]
        for words in [*steps, ["--back", "true"], ["--back", "true"]]:
            assert await loop.run_in_executor(None, use, home, *words) == 0
            await loop.run_in_executor(None, current.look)
            version = (await ask(app, "GET", "/version")).json()
            put = await ask(
                app, "PUT", "/v1/images/x", content=tiny_service.picture(1), headers={"content-type": "image/png"}
            )
            found.append((version["composition"], put.status_code))
        done.set()
        return found

    async def everything():
        return (await asyncio.gather(change(), search(), search()))[0]

    found = asyncio.run(everything())
    assert found == [("sum", 200), ("slerp", 200), ("sum", 200), ("sum", 409)]
    assert len(set(seen)) > 1 and seen[-1] == read_manifest(str(home / "index")).digest


def test_what_cannot_be_served_is_not_chosen_and_what_breaks_later_leaves_the_old_one(home, tmp_path, capsys):
    root = tmp_path / "root"
    other = tiny_service.write_checkpoint(tmp_path / "other")
    assert use(root, str(home / "gallery"), f"--checkpoint={other}") == 2
    assert "was built by encoder" in capsys.readouterr().err
    assert use(root, "--back", "true") == 2 and "There is no name at" in capsys.readouterr().err
    assert use(root, str(home / "index"), f"--checkpoint={home}/sum") == 0
    assert use(root, "--back", "true") == 2 and "for one gallery only" in capsys.readouterr().err
    name = root / "galleries" / "live.json"
    current = Current(ServeArgs(index=str(name)), Workers())
    before = current.loaded
    told = name.read_text()
    for text in ("{", told.replace("/index", "/nowhere"), '{"uses": []}'):
        name.write_text(text)
        current.look()
        assert current.loaded is before
    name.write_text(told.replace("/index", "/gallery"))
    current.look()
    assert current.loaded is not before and current.loaded.use.index == str(home / "gallery")
    assert use_of(str(home / "index"), "c").checkpoint == "c" and Path(use_of(str(name), "").index).name == "gallery"


def test_a_gallery_that_is_made_again_in_its_place_is_served_as_it_is_now_also_when_nobody_saw_it_gone(home, tmp_path):
    place, aside = tmp_path / "gallery", tmp_path / "again"
    for out, index in ((place, str(home / "index")), (aside, None)):
        run_gallery(GalleryRun(index=index, checkpoint=str(home / "sum"), out=str(out)))
        time.sleep(1.1)  # manifests tell the second
    args = ServeArgs(index=str(place), checkpoint=str(home / "sum"), writes=True)
    current = Current(args, Workers())
    before = current.loaded
    current.look()
    assert current.loaded is before and len(before.retriever.gallery) == 24
    place.rename(tmp_path / "former")
    aside.rename(place)
    current.look()
    assert current.loaded is not before and len(current.loaded.retriever.gallery) == 0
    app = make_api(lambda: current.loaded, args)
    png = {"content-type": "image/png"}
    put = asyncio.run(ask(app, "PUT", "/v1/images/x", content=tiny_service.picture(1), headers=png))
    assert put.status_code == 200 and current.loaded.retriever.follower.poll().ids == ("x",)
    current.loaded.retriever.follower.stop()
