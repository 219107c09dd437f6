"""Images are added, replaced and removed over HTTP, and shown by every replica; what cannot be is said."""

import asyncio
import base64
import json
import shutil
import time
from functools import partial
from pathlib import Path
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from small_disk import fill, small_disk

from cirray.catalogue.table import Catalogue
from cirray.core.config import validate
from cirray.core.errors import StoreError
from cirray.index.store import open_index
from cirray.pipelines.search.living import run_gallery
from cirray.pipelines.search.living_config import GalleryRun
from cirray.search_engine import SearchEngine
from cirray.serving import api
from cirray.serving.api import make_api
from cirray.serving.config import ServeArgs, ServingSettings
from cirray.serving.remote import Remote
from cirray.serving.service import DirectService


@pytest.fixture
def place(tiny, tmp_path):
    out = str(tmp_path / "gallery")
    run_gallery(GalleryRun(index=tiny.index, checkpoint=tiny.checkpoint, columns={"price": "number"}, out=out))
    return out


@pytest.fixture
def replicas(tiny, place):
    """Two services over one gallery, which look at it when a request comes."""
    engines = [SearchEngine.open(tiny.checkpoint, place) for _ in range(2)]
    return [Replica(engine, place) for engine in engines]


class Replica:
    def __init__(self, engine, place, **args):
        self.engine = engine
        service = DirectService(engine, ServingSettings(max_k=50), place)
        self.app = make_api(lambda: service, ServeArgs(**{"writes": True, **args}))

    async def ask(self, method, path, **content):
        self.engine.follower and self.engine.follower.poll()
        return await self.answer(method, path, **content)

    async def answer(self, method, path, **content):
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **content)


class Asker:
    """Synchronous requests; one event loop for all, as a replica has."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()

    def __call__(self, replica, method, path, **content):
        return self.loop.run_until_complete(replica.ask(method, path, **content))


@pytest.fixture
def ask():
    asker = Asker()
    yield asker
    asker.loop.close()


PNG = {"content-type": "image/png"}
LINES = {"content-type": "application/x-ndjson"}


def lines(*items):
    return "\n".join(json.dumps(item) for item in items)


@pytest.mark.parametrize("name", ["new", "a b/ü%2F?#&日本", "../../etc/passwd", "a'; drop", "x" * 1024])
def test_an_image_is_put_shown_by_every_replica_replaced_and_deleted(replicas, ask, picture, name):
    one, other = replicas
    path = f"/v1/images/{quote(name, safe='')}"
    done = ask(one, "PUT", path, content=picture(70), headers=PNG)
    assert done.status_code == 200 and done.json()["written"] == 1
    for replica in replicas:
        shown = ask(replica, "GET", path)
        assert shown.status_code == 200 and shown.headers["cache-control"] == "private, no-cache"
    found = ask(
        other, "POST", "/v1/search", json={"gallery_id": name, "text": "blue", "exclude_reference": False, "k": 50}
    )
    assert name in [hit["id"] for hit in found.json()["hits"]]
    assert ask(other, "PUT", path, content=picture(71), headers=PNG).status_code == 200
    assert ask(one, "GET", path).headers["etag"] != shown.headers["etag"]
    assert ask(one, "GET", path).content != shown.content
    done = ask(one, "DELETE", path)
    assert done.status_code == 200 and done.json()["removed"] == 1
    for replica in replicas:
        assert ask(replica, "GET", path).status_code == 404
    assert ask(other, "GET", "/v1/gallery").json()["total"] == 24


def test_a_picture_that_is_put_is_found_as_one_of_the_folder(tiny, replicas, ask):
    data = (Path(tiny.images) / "plain" / "02.png").read_bytes()
    ask(replicas[0], "PUT", "/v1/images/copy", content=data, headers=PNG)
    hits = ask(
        replicas[0], "POST", "/v1/search", json={"gallery_id": "plain/04", "text": "make it blue", "k": 50}
    ).json()["hits"]
    scores = {hit["id"]: hit["score"] for hit in hits}
    assert scores["copy"] == pytest.approx(scores["plain/02"], abs=1e-6)


def test_metadata_comes_with_a_form_and_is_what_filters_see(replicas, ask, picture):
    form = {"data": {"metadata": '{"price": 2.5}'}, "files": {"image": ("x.png", picture(5))}}
    assert ask(replicas[0], "PUT", "/v1/images/priced", **form).status_code == 200
    replicas[0].engine.follower.poll()
    gallery = replicas[0].engine.gallery
    assert [gallery.ids[row] for row in np.flatnonzero(gallery.columns.mask("price < 3"))] == ["priced"]


def test_a_column_that_is_added_later_is_taken_by_a_running_service(replicas, ask, picture, place):
    form = {"data": {"metadata": '{"sold": true}'}, "files": {"image": ("x.png", picture(5))}}
    refused = ask(replicas[0], "PUT", "/v1/images/a", **form)
    assert refused.status_code == 422 and "`cirray gallery --columns.NAME text` adds one" in refused.json()["detail"]
    for _ in range(2):  # again: it is there
        run_gallery(validate(GalleryRun, {"columns": {"sold": "flag"}, "out": place}))
    assert ask(replicas[0], "PUT", "/v1/images/a", **form).status_code == 200
    facets = ask(replicas[1], "GET", "/v1/facets", params={"filter": "sold"}).json()
    assert facets["images"] == 1 and [column["column"] for column in facets["columns"]] == ["price", "sold"]


def test_a_gallery_whose_folder_is_gone_is_told_by_readyz_and_searched_as_it_was(replicas, ask, picture, place):
    replica, follower = replicas[0], replicas[0].engine.follower
    assert ask(replica, "GET", "/readyz").json() == {"status": "ready", "faults": []}
    follower._poll_s, replica.engine.probe = 0.02, lambda: None
    follower.start()
    shutil.rmtree(place)
    while follower.failures < 2:
        time.sleep(0.02)
    replica.ask = replica.answer
    told = ask(replica, "GET", "/readyz").json()
    assert told["status"] == "degraded" and "The gallery 'default' has not been read for" in told["faults"][0]
    assert place not in told["faults"][0]
    assert ask(replica, "PUT", "/v1/images/a", content=picture(1), headers=PNG).status_code == 503
    asked = {"text": "make it blue", "k": 3}
    found = ask(replica, "POST", "/v1/search", data=asked, files={"image": picture(3)})
    assert found.status_code == 200 and len(found.json()["hits"]) == 3
    follower.stop()


def test_a_full_disk_is_a_503_in_one_sentence_while_reads_go_on_and_nothing_is_damaged(tiny, tmp_path, ask, picture):
    with small_disk(tmp_path / "disk", 8) as disk:
        place = str(disk / "gallery")
        run_gallery(GalleryRun(index=tiny.index, checkpoint=tiny.checkpoint, out=place))
        replica = Replica(SearchEngine.open(tiny.checkpoint, place), place)
        assert ask(replica, "PUT", "/v1/images/before", content=picture(1), headers=PNG).status_code == 200
        asked = {"json": {"text": "make it blue", "gallery_id": "plain/02", "k": 30}}
        hits = ask(replica, "POST", "/v1/search", **asked).json()["hits"]
        filler = fill(disk)
        for _ in range(3):
            for method, path, content in (
                ("PUT", "/v1/images/during", {"content": picture(2), "headers": PNG}),
                ("DELETE", "/v1/images/before", {}),
                ("POST", "/v1/images", {"content": lines({"id": "v", "vector": [0.5] * 24}), "headers": LINES}),
            ):
                reply = ask(replica, method, path, **content)
                told = reply.json()["detail"]
                assert reply.status_code == 503 and reply.headers["retry-after"] == "2", reply.text
                assert "cannot be written or read now (a full or read-only disk" in told and str(disk) not in told
            assert ask(replica, "POST", "/v1/search", **asked).json()["hits"] == hits
            assert ask(replica, "GET", "/v1/images/plain%2F02").status_code == 200
            assert ask(replica, "GET", "/readyz").json()["status"] == "ready"
        with pytest.raises(StoreError, match="cannot be written now"):
            Catalogue.open(place).compact(keep_s=0)
        filler.unlink()
        assert ask(replica, "PUT", "/v1/images/after", content=picture(3), headers=PNG).status_code == 200
        assert ask(replica, "DELETE", "/v1/images/before").status_code == 200
        Catalogue.open(place).compact(keep_s=0)
        anew = SearchEngine.open(tiny.checkpoint, place)
        ids = replica.engine.follower.poll().ids
        assert anew.gallery.ids == ids and set(ids) - set(open_index(tiny.index).ids) == {"after"} and len(ids) == 25
        for name in ids:
            assert anew.gallery.picture(name)
        for engine in (anew, replica.engine):
            engine.follower.stop()


def test_many_images_come_as_lines_and_as_files(replicas, ask, picture):
    encoded = base64.b64encode(picture(6)).decode()
    body = lines(
        {"id": "drawn", "image": encoded, "metadata": {"price": 1}}, {"id": "given", "vector": [0.1] * 24},
        {"id": "plain/02", "delete": True}, {"id": "drawn", "vector": [0.2] * 24},
    )  # fmt: skip
    done = ask(replicas[0], "POST", "/v1/images", content=body, headers=LINES)
    assert (done.status_code, done.json()["written"], done.json()["removed"]) == (200, 3, 1)
    files = [("image", ("folder/one", picture(7))), ("image", ("two", picture(8)))]
    assert ask(replicas[1], "POST", "/v1/images", files=files).json()["written"] == 2
    ids = replicas[1].engine.follower.poll().ids
    assert {"drawn", "given", "folder/one", "two"} <= set(ids) and "plain/02" not in ids and len(ids) == 27
    assert replicas[1].engine.gallery.picture("drawn") == b""  # the later line of an id counts


ONE, MANY = ("PUT", "/v1/images/a"), ("POST", "/v1/images")


def form(metadata):
    return {"data": {"metadata": metadata}, "files": {"image": b"x"}}


def told(*items):
    return {"content": items[0] if isinstance(items[0], str) else lines(*items), "headers": LINES}


BAD = [
    (*ONE, {"content": b"no picture", "headers": PNG}, 422, "is not a readable JPEG"),
    (*ONE, {"content": b"", "headers": PNG}, 422, "The body is empty"),
    (*ONE, {"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "send image/*"),
    ("PUT", "/v1/images/" + "x" * 1025, {"content": b"x", "headers": PNG}, 422, "1 to 1,024 characters"),
    ("PUT", "/v1/images/%FF", {"content": b"x", "headers": PNG}, 422, ""),
    ("DELETE", "/v1/images/", {}, 422, "1 to 1,024 characters"),
    (*ONE, form("[1]"), 422, "no JSON object"),
    (*ONE, form('{"size": 1}'), 422, "no metadata column 'size'"),
    (*ONE, form('{"price": "x"}'), 422, "holds double"),
    (*ONE, {"files": {"file": b"x"}}, 422, "Unknown field 'file'"),
    (*MANY, told(""), 422, "0 lines"),
    (*MANY, told("{"), 400, "Line 1: The body is not valid JSON"),
    (*MANY, told('{"id": "a"}'), 422, "Line 1: one of image, vector and delete"),
    (*MANY, told({"id": "a", "vector": [1]}), 422, "24 are needed"),
    (*MANY, told({"id": "a", "image": "?"}), 422, "not base64"),
    (*MANY, told({"id": "a", "image": "日本"}), 422, "Line 1: the field 'image' is not base64"),
    (*MANY, told({"id": 1, "delete": True}), 422, "Line 1: Field 'id'"),
    (*MANY, told({"id": "a", "x": 1}), 422, "Known: id, image, vector"),
    (*MANY, told('{"id":"a","vector":[' + "1e999," * 23 + "1]}"), 422, "finite"),
    (*MANY, told({"id": "ok", "vector": [0] * 24}, {"id": "", "delete": True}), 422, "Nothing was written"),
    (*MANY, {"json": {}}, 415, "application/x-ndjson"),
]  # fmt: skip


def test_what_cannot_be_written_is_said_and_nothing_of_its_request_is(replicas, ask, place):
    before = Catalogue.open(place).version
    for method, path, content, status, said in BAD:
        answer = ask(replicas[0], method, path, **content)
        assert answer.status_code == status and said in answer.json()["detail"], (method, path, content, answer.text)
        assert place not in answer.text
    assert Catalogue.open(place).version == before


def test_images_are_written_by_url_where_their_host_is_allowed(tiny, place, ask, picture, monkeypatch):
    async def resolver(host, port):
        return ["93.184.216.34"]

    def answer(request):
        return httpx.Response(200, stream=httpx.ByteStream(picture(ord(request.url.path[1]))))

    web = httpx.MockTransport(answer)
    monkeypatch.setattr(api, "Remote", partial(Remote, resolver=resolver, transport=web))
    one = Replica(SearchEngine.open(tiny.checkpoint, place), place, image_hosts=["img.test"])
    parts = {"image": (None, "https://img.test/a"), "metadata": (None, '{"price": 2}')}
    assert ask(one, "PUT", "/v1/images/new/a", files=parts).json()["written"] == 1
    many = lines({"id": "new/b", "image": "https://img.test/b"}, {"id": "new/c", "image": "https://img.test/c"})
    assert ask(one, "POST", "/v1/images", content=many, headers=LINES).json()["written"] == 2
    for name in "abc":
        assert ask(one, "GET", f"/v1/images/new/{name}").status_code == 200
    bad = lines({"id": "new/d", "image": "https://img.test/d"}, {"id": "new/e", "image": "https://other.test/e"})
    told = ask(one, "POST", "/v1/images", content=bad, headers=LINES)
    assert (
        told.status_code == 422 and "'new/e': Pictures of the host 'other.test' are not taken" in told.json()["detail"]
    )
    assert ask(one, "GET", "/v1/images/new/d").status_code == 404


def test_a_frozen_index_writes_that_are_off_and_other_sites_pages_are_told_apart(tiny, place, replicas, ask, picture):
    frozen = Replica.__new__(Replica)
    frozen.engine = SearchEngine.open(tiny.checkpoint, tiny.index)
    service = DirectService(frozen.engine)
    frozen.app = make_api(lambda: service, ServeArgs(writes=True))
    off = Replica(replicas[0].engine, place, writes=False)
    for replica, headers, status, said in (
        (frozen, {}, 409, "frozen index"), (off, {}, 403, "writes=true"),
        (replicas[0], {"origin": "https://elsewhere.example"}, 403, "may not write"),
        (replicas[0], {"origin": "http://test"}, 200, ""),
    ):  # fmt: skip
        answer = ask(replica, "PUT", "/v1/images/a", content=picture(1), headers={**PNG, **headers})
        assert answer.status_code == status and said in answer.text


def test_a_store_that_refuses_is_503_without_a_path_and_searches_go_on(replicas, ask, picture, place):
    table = Path(place) / "images.lance"
    table.rename(table.with_suffix(".away"))
    table.write_text("in its place")
    engine, replicas[0].engine.follower.poll = replicas[0].engine, lambda: None
    answer = ask(replicas[0], "PUT", "/v1/images/a", content=picture(1), headers=PNG)
    assert answer.status_code == 503 and answer.headers["retry-after"] and place not in answer.text
    assert "cannot be written" in answer.json()["detail"]
    asked = {"gallery_id": "plain/02", "text": "make it blue"}
    assert ask(replicas[0], "POST", "/v1/search", json={**asked, "k": 3}).status_code in (200, 503)
    assert len(engine.search(image=picture(3), text="make it blue").ids) == 10


def test_writes_that_wait_become_one_commit_and_all_are_there(replicas, place):
    before = Catalogue.open(place).version

    async def many():
        body = [lines({"id": f"w{number}", "vector": [number / 100] * 24}) for number in range(60)]
        asked = [replicas[0].ask("POST", "/v1/images", content=line, headers=LINES) for line in body]
        return await asyncio.gather(*asked)

    answers = asyncio.run(many())
    assert {answer.status_code for answer in answers} == {200}
    table = Catalogue.open(place)
    assert table.version - before < 20
    assert {f"w{number}" for number in range(60)} <= set(table.since(0)["id"].to_pylist())
