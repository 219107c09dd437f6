import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cirray.core.errors import ArtifactError
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.search.index import run_index
from cirray.search_engine import SearchEngine
from cirray.serving.service import DirectService

STATIC = Path(__file__).parents[3] / "cirray" / "serving" / "static"
PROBLEM_KEYS = {"type", "title", "status", "detail", "request_id"}


def assert_problem(reply, status, name, words=""):
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    body = reply.json()
    assert set(body) == PROBLEM_KEYS and body["status"] == status
    assert body["type"] == f"urn:cirray:problem:{name}"
    assert words in body["detail"]
    assert "Traceback" not in reply.text and "/cirray/" not in reply.text


def test_a_search_by_id_answers_what_the_retriever_answers(call, retriever):
    reply = call.search(text="make it  blue ", gallery_id="plain/04", k=6)
    body, wanted = reply.json(), retriever.search("make it blue", gallery_id="plain/04", k=6)
    assert reply.status_code == 200
    assert tuple(hit["id"] for hit in body["hits"]) == wanted.ids
    assert [hit["score"] for hit in body["hits"]] == pytest.approx(wanted.scores, abs=1e-7)
    assert body["index_digest"] == retriever.gallery.digest
    assert body["encoder_digest"] == retriever.encoder.digest


def test_upload_base64_and_id_of_one_picture_answer_alike(call, tiny):
    data = (tiny.images / "plain" / "04.png").read_bytes()
    asked = {"text": "make it blue", "k": 7, "exclude_reference": False}
    by_id = call.search(gallery_id="plain/04", **asked).json()["hits"]
    by_upload = call.search(data, **{**asked, "exclude_reference": "false"}).json()["hits"]
    by_base64 = call.search(image=base64.b64encode(data).decode(), **asked).json()["hits"]
    assert by_id == by_upload == by_base64 and len(by_id) == 7


def test_the_reference_is_left_out_unless_it_is_asked_for(call):
    def ids(**more):
        return [hit["id"] for hit in call.search(text="blue", gallery_id="plain/00", k=8, **more).json()["hits"]]

    everything = call("GET", "/v1/gallery?limit=500").json()["total"]
    assert everything == 24
    assert "plain/00" not in ids()
    assert len(ids()) == len(ids(exclude_reference=False)) == 8


def test_an_answer_tells_the_steps_that_took_its_time(call):
    answer = call.search(text="blue", gallery_id="plain/00").json()
    assert set(answer["times_ms"]) == {"decode", "image", "text", "rank", "rerank"}
    assert 0 < sum(answer["times_ms"].values()) <= answer["took_ms"]


def test_k_has_a_default_and_a_cap(call):
    assert len(call.search(text="blue", gallery_id="plain/00").json()["hits"]) == 5
    assert len(call.search(text="blue", gallery_id="plain/00", k=5000).json()["hits"]) == 8


def test_links_of_answers_lead_to_pictures_whatever_the_id_looks_like(call):
    hits = call.search(text="blue", gallery_id="plain/00", k=8).json()["hits"]
    assert any(" " in hit["id"] for hit in hits)
    for hit in hits:
        reply = call("GET", hit["image"])
        assert reply.status_code == 200 and reply.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(reply.content)).size[1] == 32


def test_a_picture_that_the_caller_has_is_not_sent_again(call):
    first = call("GET", "/v1/images/plain/00")
    again = call("GET", "/v1/images/plain/00", headers={"if-none-match": first.headers["etag"]})
    assert again.status_code == 304 and not again.content


def test_the_gallery_is_listed_in_pages(call, retriever):
    first, second = call("GET", "/v1/gallery?limit=20").json(), call("GET", "/v1/gallery?limit=20&offset=20").json()
    assert [item["id"] for item in first["items"] + second["items"]] == list(retriever.gallery.ids)
    assert call("GET", "/v1/gallery?offset=999").json()["items"] == []


@pytest.mark.parametrize(
    ("fields", "status", "name", "words"),
    [
        ({"text": "", "gallery_id": "plain/00"}, 422, "unusable-query", "text is empty"),
        ({"text": " \n\t ", "gallery_id": "plain/00"}, 422, "unusable-query", "text is empty"),
        ({"text": "x" * 513, "gallery_id": "plain/00"}, 422, "unusable-query", "513 characters"),
        ({"text": "a\x00b", "gallery_id": "plain/00"}, 422, "unusable-query", "U+0000"),
        ({}, 422, "unusable-query", "nothing to search by"),
        ({"text": "blue", "gallery_id": "plain/00", "weight": 1.5}, 422, "unusable-query", "'weight'"),
        ({"text": "blue", "gallery_id": "plain/00", "weight": 0.5}, 422, "unusable-query", "no weight"),
        ({"text": "blue", "gallery_id": "plain/00", "image": "aGk="}, 422, "unusable-query", "both"),
        ({"text": "blue", "gallery_id": "nope"}, 404, "unknown-image", "no image 'nope'"),
        ({"text": "blue", "gallery_id": "../../../etc/passwd"}, 404, "unknown-image", "no image"),
        ({"text": "blue", "image": "%%%"}, 422, "unusable-query", "not base64"),
        ({"text": "blue", "image": ""}, 422, "unusable-query", "empty"),
        ({"text": "blue", "image": "aGVsbG8="}, 422, "unusable-query", "not a readable"),
        ({"text": "blue", "gallery_id": "plain/00", "k": 0}, 422, "unusable-query", "'k'"),
        ({"text": "blue", "gallery_id": "plain/00", "k": "many"}, 422, "unusable-query", "'k'"),
        ({"text": 5, "gallery_id": "plain/00"}, 422, "unusable-query", "'text'"),
        ({"text": "blue", "galery_id": "plain/00"}, 422, "unusable-query", "Unknown field 'galery_id'. Known: text"),
    ],
)
def test_fields_that_cannot_be_used_are_named(call, fields, status, name, words):
    assert_problem(call.search(**fields), status, name, words)


@pytest.mark.parametrize(
    ("content", "media", "status", "name"),
    [
        (b"{", "application/json", 400, "bad-request"),
        (b"\xff\xfe", "application/json", 400, "bad-request"),
        (b'{"text": "\\ud800", "gallery_id": "plain/00"}', "application/json", 400, "bad-request"),
        (b"[" * 100_000, "application/json", 400, "bad-request"),
        (b"[]", "application/json", 422, "unusable-query"),
        (b"text=blue", "application/x-www-form-urlencoded", 415, "unsupported-media-type"),
        (b"blue", "", 415, "unsupported-media-type"),
        (b"blue", "multipart/form-data", 400, "bad-request"),
        (b"--x\r\nnonsense", "multipart/form-data; boundary=x", 422, "unusable-query"),
    ],
)
def test_bodies_that_cannot_be_parsed_are_problems(call, content, media, status, name):
    assert_problem(call("POST", "/v1/search", content=content, headers={"content-type": media}), status, name)


def test_odd_multipart_bodies_are_problems(call, picture):
    twice = call("POST", "/v1/search", files=[("image", ("a", picture(0))), ("image", ("b", picture(1)))])
    assert twice.status_code in (400, 422)
    wrong_name = call("POST", "/v1/search", data={"text": "blue"}, files={"picture": ("a", picture(0))})
    assert_problem(wrong_name, 422, "unusable-query", "'picture'")
    as_text = call("POST", "/v1/search", data={"text": "blue", "image": "abc"}, files={"x": ("", b"")})
    assert as_text.status_code == 422
    strange = "multipart/form-data; boundary=x; charset=no-such-charset"
    reply = call(
        "POST",
        "/v1/search",
        content=b'--x\r\ncontent-disposition: form-data; name="text"\r\n\r\n\xff\r\n--x--',
        headers={"content-type": strange},
    )
    assert reply.status_code < 500


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damaged_picture_is_a_server_error(call, picture, data):
    whole = bytearray(
        picture(data.draw(st.integers(0, 9)), kind=data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP"])))
    )
    for _ in range(data.draw(st.integers(0, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    reply = call.search(cut, text="blue")
    assert reply.status_code in (200, 422), reply.text
    if reply.status_code == 422:
        assert_problem(reply, 422, "unusable-query")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_pictures_of_every_mode_are_taken(call, mode):
    stream = io.BytesIO()
    rng = np.random.default_rng(0)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65535, (30, 20), dtype=np.uint16))
    else:
        image = Image.fromarray(rng.integers(0, 255, (30, 20, 3), dtype=np.uint8)).convert(mode)
    assert image.mode == mode
    image.save(stream, "JPEG" if mode == "CMYK" else "PNG")
    assert call.search(stream.getvalue(), text="blue").status_code == 200


@pytest.mark.parametrize(
    ("size", "words"), [((1, 1), "at least 8"), ((8, 2000), "aspect ratio"), ((9000, 9000), "pixels")]
)
def test_pictures_out_of_bounds_are_refused_before_they_are_decoded(call, size, words):
    stream = io.BytesIO()
    Image.new("1", size).save(stream, "PNG")
    assert_problem(call.search(stream.getvalue(), text="blue"), 422, "unusable-query", words)


def test_a_long_body_is_answered_413_announced_or_not(make_caller, picture):
    call = make_caller(max_body_mb=0.01)
    announced = call("POST", "/v1/search", content=b"x" * 20_000, headers={"content-type": "application/json"})
    assert_problem(announced, 413, "body-too-large", "0.01 MiB")

    async def drip():
        yield b'--x\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(40):
            yield b"x" * 1000

    for media in ("application/json", "multipart/form-data; boundary=x"):
        reply = call("POST", "/v1/search", content=drip(), headers={"content-type": media})
        assert_problem(reply, 413, "body-too-large")
    assert call.search(picture(0), text="blue").status_code == 200


def test_a_body_that_never_ends_is_answered_408(make_caller):
    import asyncio

    async def slow():
        yield b"{"
        await asyncio.sleep(5)
        yield b"}"

    call = make_caller(body_timeout_s=0.1)
    reply = call("POST", "/v1/search", content=slow(), headers={"content-type": "application/json"})
    assert_problem(reply, 408, "body-timeout")


@pytest.mark.parametrize(
    ("path", "allowed"), [("/v1/images/x", "DELETE, GET, PUT"), ("/v1/images", "POST"), ("/v1/search", "POST")]
)
def test_a_method_that_is_not_offered_is_told_all_that_are(call, path, allowed):
    reply = call("PATCH", path)
    assert reply.status_code == 405 and reply.headers["allow"] == allowed


@pytest.mark.parametrize(
    ("method", "path", "status", "name"),
    [
        ("GET", "/nope", 404, "not-found"),
        ("GET", "/v1/search", 405, "method-not-allowed"),
        ("GET", "/v1/images/nope", 404, "unknown-image"),
        ("GET", "/v1/images/..%2F..%2Fetc%2Fpasswd", 404, "unknown-image"),
        ("GET", "/static/..%2Fapi.py", 404, "not-found"),
        ("GET", "/static/nope.js", 404, "not-found"),
        ("GET", "/v1/galleries/", 404, "not-found"),
        ("GET", "/v1/gallery?limit=0", 422, "unusable-query"),
        ("GET", "/v1/gallery?limit=501", 422, "unusable-query"),
        ("GET", "/v1/gallery?offset=x", 422, "unusable-query"),
    ],
)
def test_wrong_paths_and_parameters_are_problems(call, method, path, status, name):
    assert_problem(call(method, path), status, name)


def test_every_answer_carries_safe_headers_and_a_request_id(call):
    for reply in (call("GET", "/"), call("GET", "/nope"), call.search(text="blue", gallery_id="plain/00")):
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert re.fullmatch(r"[0-9a-f]{32}", reply.headers["x-request-id"])
    mine = call("GET", "/healthz", headers={"x-request-id": "abc-1"})
    hostile = call("GET", "/healthz", headers={"x-request-id": "<script>"})
    assert mine.headers["x-request-id"] == "abc-1" and hostile.headers["x-request-id"] != "<script>"


def test_readiness_follows_the_model(make_caller, retriever, monkeypatch):
    service = DirectService(retriever)
    call = make_caller(service)
    assert call("GET", "/readyz").json() == {"status": "ready", "faults": []}

    def broken(*given):
        raise ArtifactError("the weights are gone")

    monkeypatch.setattr(retriever.encoder, "compose", broken)
    service._workers._probed.clear()
    reply = call("GET", "/readyz")
    assert_problem(reply, 503, "unavailable", "the weights are gone")
    assert reply.headers["retry-after"] == "2"
    assert call("GET", "/healthz").json() == {"status": "ok"}


def test_an_unexpected_failure_shows_no_internals(make_caller, retriever, monkeypatch):
    monkeypatch.setattr(retriever.encoder, "compose", lambda *given: 1 / 0)
    reply = make_caller().search(text="blue", gallery_id="plain/00")
    assert_problem(reply, 500, "internal")
    assert "division" not in reply.text


def test_queries_to_try_are_the_indexs_own_and_a_reference_has_only_its_texts(make_caller, retriever):
    own = {"plain/04": ("make it red", "add a star")}
    gallery = replace(retriever.gallery, texts=own, examples=(("a b/pïc 01", "make it blue"),))
    parts = (retriever.encoder, retriever.vision, retriever.transform, gallery)
    call = make_caller(DirectService(SearchEngine(*parts)))
    assert call("GET", "/v1/examples").json()["queries"] == [
        {"gallery_id": "a b/pïc 01", "text": "make it blue", "image": "/v1/images/a%20b%2Fp%C3%AFc%2001"}
    ]
    mine = call("GET", "/v1/examples?gallery_id=plain/04").json()["queries"]
    assert [(query["gallery_id"], query["text"]) for query in mine] == [
        (name, text) for name in own for text in own[name]
    ]
    assert call("GET", "/v1/examples?gallery_id=plain/06").json() == {"queries": []}
    assert_problem(call("GET", "/v1/examples?gallery_id=nope"), 404, "unknown-image", "'nope'")


def test_the_page_and_its_files_are_self_contained(call):
    page = call("GET", "/").text
    names = re.findall(r'(?:src|href)="(static/[^"]+)"', page)
    assert {"static/app.js", "static/app.css"} <= set(names)
    for name in set(names):
        assert call("GET", f"/{name}").status_code == 200
    scripts = [call("GET", f"/static/{path.name}").text for path in sorted(STATIC.glob("*.js"))]
    outside = r"""(?:(?:src|href|url|fetch)\s*[=(]\s*["']?|(?:import|from)\s*["'])(?:https?:)?//"""
    for text in [page, call("GET", "/static/app.css").text, *scripts]:
        assert not re.search(outside, text)
    assert not any("innerHTML" in text for text in scripts)
    assert not re.search(r"<script(?![^>]*\ssrc=)|\sstyle=|\son\w+=", page)


def test_the_page_of_the_api_tells_every_route_and_field_and_needs_no_other_server(call):
    page, document = call("GET", "/docs"), call("GET", "/openapi.json").json()
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    for path, methods in document["paths"].items():
        for method in methods:
            assert f"<code>{method.upper()} {path}</code>" in page.text
    for name in ("gallery_id", "exclude_reference", "hits.score", "times_ms.decode", "multipart/form-data", "429"):
        assert name in page.text
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert "openapi.json" in links and "<script" not in page.text
    for link in links:
        assert "//" not in link and call("GET", "/" + link.removeprefix("./")).status_code == 200


def test_the_page_of_the_api_escapes_what_a_request_says(call):
    assert "<script" not in call("GET", "/docs", headers={"host": "x<script>y"}).text


def test_the_openapi_document_names_every_route_and_problem(call):
    document = call("GET", "/openapi.json").json()
    below = "/v1/galleries/{gallery}"
    named = {path for path in document["paths"] if path.startswith(below)}
    plain = set(document["paths"]) - named - {"/v1/galleries"}
    assert named == {path.replace("/v1", below, 1) for path in plain if path.startswith("/v1/")} | {below}
    assert plain == {
        "/v1/search",
        "/v1/search:batch",
        "/v1/facets",
        "/v1/gallery",
        "/v1/images",
        "/v1/images/{image_id}",
        "/v1/images:load",
        "/v1/examples",
        "/healthz",
        "/readyz",
        "/version",
    }
    search = document["paths"]["/v1/search"]["post"]
    assert set(search["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
    assert {"200", "404", "408", "413", "415", "422", "429", "503"} <= set(search["responses"])
    assert "Problem" in document["components"]["schemas"]
    json.dumps(document)


def test_pictures_of_every_name_have_a_url_that_answers(tiny, tmp_path, picture, make_caller):
    folder = tmp_path / "pictures"
    names = ["line\nbreak", "end\n", "a\rb", "tab\t", "c%d", "%41", "q?x=1#y", "semi;colon", "a+b", " lead", "\u00a0",
             "日本", "\u202fnarrow", "back\\slash", "'quote\"", "<b>", "caf\udce9"]  # fmt: skip
    for number, name in enumerate(names):
        folder.mkdir(exist_ok=True)
        with open(folder / f"{name}.png", "wb") as stream:
            stream.write(picture(number))
    run_index(IndexRun(checkpoint=tiny.checkpoint, images=str(folder), out=str(tmp_path / "index")))
    retriever = SearchEngine.open(tiny.checkpoint, str(tmp_path / "index"))
    call = make_caller(DirectService(retriever))
    hits = call.search(gallery_id="line\nbreak", text="make it blue", k=50).json()["hits"]
    items = call("GET", "/v1/gallery").json()["items"]
    assert len(items) == len(names) and len(hits) == len(names) - 1 and "caf%E9" in {item["id"] for item in items}
    for item in (*items, *hits):
        reply = call("GET", item["image"])
        assert reply.status_code == 200 and reply.content == retriever.gallery.picture(item["id"]), item
    assert call("GET", "/v1/images/none%0A").status_code == 404
