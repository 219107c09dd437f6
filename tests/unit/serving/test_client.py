import asyncio
import inspect
import re

import httpx
import pytest

from cirray.core.errors import ServingError
from cirray.serving import calls
from cirray.serving.api import make_api
from cirray.serving.client import AsyncSearchClient, SearchClient
from cirray.serving.config import ServeArgs
from cirray.serving.names import below
from cirray.types import StepTimes

ANSWER = {
    "hits": [{"id": "a", "score": 0.5, "image": None}], "index_digest": "i", "encoder_digest": "e", "took_ms": 1.0,
    "times_ms": {"decode": 0.5, "image": 2.0, "text": 1.0, "rank": 0.25}, "request_id": "r",
}  # fmt: skip


class Waiting:
    """The asyncio client with its answers waited for, so that one test asks both."""

    def __init__(self, *args, **kwargs):
        self._runner, self._inner = asyncio.Runner(), AsyncSearchClient(*args, **kwargs)

    def __getattr__(self, name):
        method = getattr(self._inner, name)
        return lambda *args, **kwargs: self._runner.run(method(*args, **kwargs))

    def __enter__(self):
        self._runner.run(self._inner.__aenter__())
        return self

    def __exit__(self, *about):
        self._runner.run(self._inner.__aexit__(*about))
        self._runner.close()


@pytest.fixture(params=[SearchClient, Waiting], ids=["sync", "async"])
def client(request):
    """Makes a client of a server that gives some replies in turn; the requests it got are in `.seen`."""

    def make(*replies, retries=3, **told):
        waiting, seen = list(replies), []

        def answer(request):
            seen.append(request)
            reply = waiting.pop(0)
            if isinstance(reply, Exception):
                raise reply
            return reply

        made = request.param("http://test/prefix/", retries=retries, transport=httpx.MockTransport(answer), **told)
        made.seen = seen
        return made

    return make


def test_a_search_by_id_sends_json_and_returns_a_ranking(client):
    with client(httpx.Response(200, json=ANSWER)) as talk:
        answer = talk.search("blue", gallery_id="a b/ü", k=3)
    assert answer.ranking.ids == ("a",) and answer.ranking.scores == (0.5,) and answer.index_digest == "i"
    assert answer.ranking.times == StepTimes(decode=0.5, image=2.0, text=1.0, rank=0.25)
    assert talk.seen[0].url == "http://test/prefix/v1/search"
    assert b'"k":3' in talk.seen[0].content.replace(b" ", b"")


def test_a_search_by_picture_sends_a_file(client):
    with client(httpx.Response(200, json=ANSWER)) as talk:
        talk.search("blue", image=b"bytes", exclude_reference=False)
    assert talk.seen[0].headers["content-type"].startswith("multipart/form-data")
    assert b"bytes" in talk.seen[0].content and b"false" in talk.seen[0].content


def test_an_id_becomes_one_path_segment(client):
    with client(httpx.Response(200, content=b"png")) as talk:
        assert talk.image("a/../b ?#") == b"png"
    assert talk.seen[0].url.raw_path == b"/prefix/v1/images/a%2F..%2Fb%20%3F%23"


def test_images_are_put_deleted_and_added_in_bulk(client):
    done = [httpx.Response(200, json={"version": number}) for number in (4, 5, 6)]
    with client(*done) as talk:
        assert talk.put("a/b", b"bytes", {"price": 1}) == 4 and talk.delete("a/b") == 5
        assert talk.add([{"id": "c", "vector": [1.0]}, {"id": "d", "image": b"e"}]) == 6
    put, delete, many = talk.seen
    assert (put.method, put.url.raw_path, delete.method) == ("PUT", b"/prefix/v1/images/a%2Fb", "DELETE")
    assert b"bytes" in put.content and b'{"price": 1}' in put.content
    assert many.content == b'{"id": "c", "vector": [1.0]}\n{"id": "d", "image": "ZQ=="}'
    assert many.headers["content-type"] == "application/x-ndjson"


def test_a_busy_service_is_asked_again(client):
    busy = httpx.Response(429, headers={"retry-after": "0"}, text="dropped")
    with client(busy, httpx.ConnectError("refused"), httpx.Response(200, json=ANSWER)) as talk:
        assert talk.search("blue", gallery_id="a").ranking.ids == ("a",)
    assert len(talk.seen) == 3


def test_a_request_whose_replica_died_is_asked_again_and_a_failure_of_the_application_is_not(client):
    lost = httpx.Response(500, text="The actor died unexpectedly before finishing this task.")
    with client(lost, httpx.ReadError("cut"), httpx.Response(200, json=ANSWER)) as talk:
        assert talk.search("blue", gallery_id="a").ranking.ids == ("a",)
    assert len(talk.seen) == 3
    own = httpx.Response(500, json={"detail": "broken"}, headers={"content-type": "application/problem+json"})
    with client(own) as talk, pytest.raises(ServingError, match="500: broken"):
        talk.search("blue", gallery_id="a")
    assert len(talk.seen) == 1


def test_a_service_that_stays_busy_is_reported(client):
    with client(*[httpx.Response(503, headers={"retry-after": "0"}, text="no replica")] * 2, retries=1) as talk:
        with pytest.raises(ServingError, match="503: no replica"):
            talk.search("blue", gallery_id="a")


def test_a_refusal_carries_the_servers_sentence_and_is_not_repeated(client):
    with client(httpx.Response(422, json={"detail": "The text is empty."})) as talk:
        with pytest.raises(ServingError, match="422: The text is empty."):
            talk.search("", gallery_id="a")
    assert len(talk.seen) == 1


def test_an_unreachable_service_and_a_missing_file_are_said_in_words(client, tmp_path):
    with client(httpx.ConnectError("refused"), retries=0) as talk:
        with pytest.raises(ServingError, match="cannot be reached"):
            talk.version()
        with pytest.raises(ServingError, match="no.png"):
            talk.search("blue", image=tmp_path / "no.png")


def test_a_client_shows_its_key_or_that_of_the_environment_and_none_without(monkeypatch):
    seen = []

    def shown(**given):
        answer = httpx.MockTransport(lambda request: seen.append(request) or httpx.Response(200, json=ANSWER))
        with SearchClient("http://test", transport=answer, **given) as talk:
            talk.version()
        return seen[-1].headers.get("authorization")

    monkeypatch.delenv("CIRRAY_KEY", raising=False)
    assert (shown(), shown(key="k1")) == (None, "Bearer k1")
    monkeypatch.setenv("CIRRAY_KEY", "k2")
    assert (shown(), shown(key="k1"), shown(key="")) == ("Bearer k2", "Bearer k1", None)


def test_both_clients_ask_for_everything_that_the_document_offers():
    asked = [
        calls.search("a"), calls.search_many([{"text": "a"}]), calls.facets("a = 1"), calls.examples("a"),
        calls.gallery(), calls.image("a"), calls.put("a", b"b"), calls.delete("a"), calls.add([]), calls.version(),
        calls.galleries(), calls.ready(), calls.metrics(), calls.load("a"),
    ]  # fmt: skip
    known = {(call.method, below(call.path, name)) for call in asked for name in ("", "a")}
    offered = make_api(lambda: None, ServeArgs()).openapi()["paths"]
    wanted = {(method.upper(), re.sub(r"\{.*?\}", "a", path)) for path, kinds in offered.items() for method in kinds}
    assert wanted - known == {("GET", "/healthz")}


def test_a_client_of_a_gallery_asks_below_its_name(client):
    asks = client(httpx.Response(200, json=ANSWER), httpx.Response(200, json={}), httpx.Response(200), gallery="a b")
    asks.search("blue", gallery_id="x")
    asks.version()
    asks.image("a/b")
    paths = [request.url.raw_path.decode() for request in asks.seen]
    assert paths == [
        f"/prefix/v1/galleries/a%20b{path}" for path in ("/search", "", "/images/a%2Fb")
    ]  # fmt: skip


def test_a_method_has_the_words_and_the_arguments_of_its_call():
    names = [
        name
        for name, value in vars(calls).items()
        if inspect.isfunction(value) and "Call[" in str(inspect.signature(value).return_annotation)
    ]
    for kind in (SearchClient, AsyncSearchClient):
        for name in names:
            method, make = getattr(kind, name), getattr(calls, name)
            assert method.__doc__ == make.__doc__ and list(inspect.signature(method).parameters)[1:] == list(
                inspect.signature(make).parameters
            )


def test_a_picture_may_be_named_by_its_url(client):
    url = "https://img.example.org/a.png"
    replies = [
        httpx.Response(200, json=ANSWER),
        httpx.Response(200, json={"answers": []}),
        httpx.Response(200, json={"version": 1}),
    ]
    with client(*replies) as talk:
        talk.search("blue", image=url)
        talk.search_many([{"image": url}])
        talk.put("a", url, {"price": 1})
    one, many, put = (request.content.decode() for request in talk.seen)
    assert f'"image":"{url}"' in one and f'"image":"{url}"' in many and url in put and "filename" not in put
