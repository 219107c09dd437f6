"""Several galleries by name in one service: each answers for itself, at paths of its own, with keys of its own."""

import pytest
import tiny_service

from cirray.cli.main import main
from cirray.core.config import validate
from cirray.core.errors import ConfigError
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.search.index import run_index
from cirray.pipelines.search.living import run_gallery
from cirray.pipelines.search.living_config import GalleryRun
from cirray.serving.access import route_of
from cirray.serving.api import make_api
from cirray.serving.config import ServeArgs, ServeRun
from cirray.serving.deployments import SearchReplica
from cirray.serving.launch import plan_of
from cirray.serving.names import below, parted


@pytest.fixture(scope="module")
def home(tiny, tmp_path_factory):
    """An index of three other pictures, and a gallery that is written to."""
    home = tmp_path_factory.mktemp("galleries")
    (home / "few").mkdir()
    for number in range(3):
        (home / "few" / f"few-{number}.png").write_bytes(tiny_service.picture(200 + number))
    run_index(IndexRun(checkpoint=tiny.checkpoint, images=str(home / "few"), out=str(home / "few-index")))
    run_gallery(GalleryRun(index=tiny.index, checkpoint=tiny.checkpoint, out=str(home / "shop")))
    return home


@pytest.fixture
def args(tiny, home):
    named = {"few": str(home / "few-index"), "shop": str(home / "shop")}
    return {"checkpoint": tiny.checkpoint, "index": tiny.index, "galleries": named, "writes": True}


@pytest.fixture
def serve(args, caller_of):
    """The application of a replica without Ray around it."""
    replicas = []

    def make(**more):
        replicas.append(SearchReplica(ServeArgs(**args, **more)))
        replica = replicas[-1]
        app = make_api(lambda: replica.loaded["default"], ServeArgs(**args, **more), galleries=lambda: replica.loaded)
        call = caller_of(app)
        call.replica = replica
        return call

    yield make
    for replica in replicas:
        replica.loaded["shop"].retriever.follower.stop()


def found(reply):
    assert reply.status_code == 200, reply.text
    return {hit["id"] for hit in reply.json()["hits"]}


def test_each_gallery_answers_below_its_name_and_the_paths_without_one_are_the_first(serve, picture):
    call = serve()
    listed = call("GET", "/v1/galleries").json()["galleries"]
    assert listed == [
        {"name": "default", "images": 24, "writable": False}, {"name": "few", "images": 3, "writable": False},
        {"name": "shop", "images": 24, "writable": True},
    ]  # fmt: skip
    few = "/v1/galleries/few"
    asked = {"text": "make it blue", "gallery_id": "few-1", "k": 8}
    hits = call("POST", f"{few}/search", json=asked).json()["hits"]
    assert {hit["id"] for hit in hits} == {"few-0", "few-2"}
    assert hits[0]["image"] == f"{few}/images/{hits[0]['id']}" and call("GET", hits[0]["image"]).status_code == 200
    assert call("GET", "/v1/gallery").json()["items"][0]["image"].startswith("/v1/images/")
    assert call("POST", "/v1/search", json=asked).status_code == 404
    batch = call("POST", f"{few}/search:batch", json={"queries": [asked]}).json()["answers"]
    assert [hit["id"] for hit in batch[0]["answer"]["hits"]] == [hit["id"] for hit in hits]
    form = call("POST", f"{few}/search", data={"text": "make it blue"}, files={"image": picture(1)})
    assert found(form) == {"few-0", "few-1", "few-2"}
    assert call("GET", f"{few}/gallery").json()["total"] == 3 and call("GET", few).json()["gallery_size"] == 3
    assert call("GET", f"{few}/facets").json()["images"] == 3 and call("GET", f"{few}/examples").status_code == 200
    one, same = call("GET", "/v1/galleries/default").json(), call("GET", "/version").json()
    assert one == same and one["gallery_size"] == 24
    assert call("GET", "/readyz").json() == {"status": "ready", "faults": []}
    engines = [loaded.retriever for loaded in call.replica.loaded.values()]
    assert all(engine.encoder is engines[0].encoder and engine.vision is engines[0].vision for engine in engines)


def test_a_write_reaches_the_gallery_of_its_path_alone_and_an_unknown_name_is_told_the_known_ones(serve, picture):
    call = serve()
    png = {"headers": {"content-type": "image/png"}, "content": picture(9)}
    assert call("PUT", "/v1/galleries/few/images/new", **png).status_code == 409
    assert call("PUT", "/v1/images/new", **png).status_code == 409
    assert call("PUT", "/v1/galleries/shop/images/new", **png).status_code == 200
    call.replica.loaded["shop"].retriever.follower.poll()
    shown = [
        call("GET", f"{base}/images/new").status_code for base in ("/v1", "/v1/galleries/few", "/v1/galleries/shop")
    ]
    assert shown == [404, 404, 200]
    for method, path in [("GET", ""), ("POST", "/search"), ("PUT", "/images/a"), ("DELETE", "/images/a")]:
        reply = call(method, f"/v1/galleries/shpo{path}", json={"text": "x"})
        assert reply.status_code == 404 and reply.json()["detail"].startswith(
            "Unknown gallery 'shpo'. Did you mean 'shop'? Known: default, few, shop"
        )


def test_keys_and_their_scopes_hold_for_each_gallery_and_a_key_may_be_for_some(serve, tmp_path, capsys, picture):
    file, keys = str(tmp_path / "keys.json"), {}
    for name, *words in [("reads",), ("writes", "--scopes", "read,write"), ("few", '--galleries=["few"]')]:
        assert main(["keys", file, "--add", name, *words]) == 0
        keys[name] = capsys.readouterr().out.splitlines()[0]
    assert main(["keys", file]) == 0 and "few  read  few  any  never" in capsys.readouterr().out
    call = serve(keys=file)

    def status(key, method, path, **content):
        headers = {"authorization": f"Bearer {keys[key]}"} if key else {}
        return call(method, path, headers={**headers, **content.pop("headers", {})}, **content).status_code

    png = {"headers": {"content-type": "image/png"}, "content": picture(9)}
    search, put = ("POST", "/v1/galleries/few/search"), ("PUT", "/v1/galleries/shop/images/a")
    asked = {"json": {"text": "blue", "gallery_id": "few-1"}}
    assert [status(key, *search, **asked) for key in (None, "reads", "writes", "few")] == [401, 200, 200, 200]
    assert [status(key, *put, **png) for key in (None, "reads", "writes", "few")] == [401, 403, 200, 403]
    elsewhere = ["/v1/gallery", "/version", "/v1/galleries/shop", "/v1/galleries/default/gallery", "/v1/galleries/no"]
    assert [status("few", "GET", path) for path in elsewhere] == [403] * 5
    assert [status("reads", "GET", path) for path in elsewhere] == [200, 200, 200, 200, 404]
    listed = call("GET", "/v1/galleries", headers={"authorization": f"Bearer {keys['few']}"}).json()["galleries"]
    assert [item["name"] for item in listed] == ["few"]


def test_the_page_alone_may_ask_the_services_that_it_is_to_be_compared_with(make_caller):
    places = {"new": "https://new.example.org/", "old": "http://10.0.0.7:8000/p/v1/galleries/shop"}
    call, apis = make_caller(compare=places), ["https://new.example.org/v1/", places["old"] + "/"]
    assert call("GET", "/v1/galleries").json()["compare"] == dict(zip(places, apis, strict=True))
    plain = call("GET", "/docs").headers["content-security-policy"]
    assert make_caller()("GET", "/").headers["content-security-policy"] == plain and "example" not in plain
    more = " ".join(apis)
    wanted = plain.replace("data:;", f"data: {more};").replace("connect-src 'self'", f"connect-src 'self' {more}")
    assert call("GET", "/").headers["content-security-policy"] == wanted != plain


@pytest.mark.parametrize(
    "url", ["", "new.example.org", "ftp://a", "https://a b", "https://a;script-src *", "https://u:p@a", "https://a?x=1"]
)
def test_an_address_that_is_no_service_s_and_a_name_of_two_sides_are_refused(url):
    with pytest.raises(ConfigError, match="is no address of a service; https://search.example.org is"):
        validate(ServeArgs, {"compare": {"new": url}})
    with pytest.raises(ConfigError, match="'few' is named in `galleries` and in `compare`"):
        validate(ServeArgs, {"compare": {"few": "https://a"}, "galleries": {"few": "@b"}})


@pytest.mark.parametrize("name", ["default", "a/b", "", "-x", "ü", "x" * 65])
def test_a_name_that_paths_cannot_say_is_refused(name):
    with pytest.raises(ConfigError, match="is no name of a further gallery"):
        validate(ServeArgs, {"galleries": {name: "@index"}})


def test_the_command_line_names_further_galleries_and_paths_are_read_as_they_are_written(home):
    plan = plan_of(
        validate(ServeRun, {"index": "@a", "checkpoint": "@c", "galleries": {"few": "@b"}, "root": str(home)})
    )
    assert plan.args.galleries == {"few": f"{home}/b"} and plan.args.index == f"{home}/a"
    assert parted("/v1/search") == ("default", "/v1/search") and parted("/v1/galleries") == (None, "/v1/galleries")
    assert parted("/v1/galleries/few/images/a/b") == ("few", "/v1/images/a/b")
    assert parted("/v1/galleries/few") == ("few", "/version") and parted("/healthz") == (None, "/healthz")
    for path in ("/v1/search", "/v1/images/a/b", "/version"):
        assert parted(below(path, "few")) == ("few", path) and below(path, "") == path
    assert below("/healthz", "few") == "/healthz" and below("/v1/galleries", "few") == "/v1/galleries"
    assert route_of("/p/v1/galleries/few/images/a\n/b") == "/p/v1/galleries/few/images/{image_id}"
    assert route_of("/v1/images/a/images/b") == "/v1/images/{image_id}" and route_of("/v1/search") == "/v1/search"
