import httpx
import pytest

from cirray.core.errors import ServingError
from cirray.serving.client import SearchClient
from cirray.types import StepTimes

ANSWER = {
    "hits": [{"id": "a", "score": 0.5, "image": None}], "index_digest": "i", "encoder_digest": "e", "took_ms": 1.0,
    "times_ms": {"decode": 0.5, "image": 2.0, "text": 1.0, "rank": 0.25}, "request_id": "r",
}  # fmt: skip


def client(*replies, retries=3):
    """A client of a server that gives these replies in turn; the requests it got are in `.seen`."""
    waiting, seen = list(replies), []

    def answer(request):
        seen.append(request)
        reply = waiting.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    made = SearchClient("http://test/prefix/", retries=retries, transport=httpx.MockTransport(answer))
    made.seen = seen
    return made


def test_a_search_by_id_sends_json_and_returns_a_ranking():
    with client(httpx.Response(200, json=ANSWER)) as talk:
        answer = talk.search("blue", gallery_id="a b/ü", k=3)
    assert answer.ranking.ids == ("a",) and answer.ranking.scores == (0.5,) and answer.index_digest == "i"
    assert answer.ranking.times == StepTimes(decode=0.5, image=2.0, text=1.0, rank=0.25)
    assert talk.seen[0].url == "http://test/prefix/v1/search"
    assert b'"k":3' in talk.seen[0].content.replace(b" ", b"")


def test_a_search_by_picture_sends_a_file():
    with client(httpx.Response(200, json=ANSWER)) as talk:
        talk.search("blue", image=b"bytes", exclude_reference=False)
    assert talk.seen[0].headers["content-type"].startswith("multipart/form-data")
    assert b"bytes" in talk.seen[0].content and b"false" in talk.seen[0].content


def test_an_id_becomes_one_path_segment():
    with client(httpx.Response(200, content=b"png")) as talk:
        assert talk.image("a/../b ?#") == b"png"
    assert talk.seen[0].url.raw_path == b"/prefix/v1/images/a%2F..%2Fb%20%3F%23"


def test_images_are_put_deleted_and_added_in_bulk():
    done = [httpx.Response(200, json={"version": number}) for number in (4, 5, 6)]
    with client(*done) as talk:
        assert talk.put("a/b", b"bytes", {"price": 1}) == 4 and talk.delete("a/b") == 5
        assert talk.add([{"id": "c", "vector": [1.0]}, {"id": "d", "delete": True}]) == 6
    put, delete, many = talk.seen
    assert (put.method, put.url.raw_path, delete.method) == ("PUT", b"/prefix/v1/images/a%2Fb", "DELETE")
    assert b"bytes" in put.content and b'{"price": 1}' in put.content
    assert many.content == b'{"id": "c", "vector": [1.0]}\n{"id": "d", "delete": true}'
    assert many.headers["content-type"] == "application/x-ndjson"


def test_a_busy_service_is_asked_again():
    busy = httpx.Response(429, headers={"retry-after": "0"}, text="dropped")
    with client(busy, httpx.ConnectError("refused"), httpx.Response(200, json=ANSWER)) as talk:
        assert talk.search("blue", gallery_id="a").ranking.ids == ("a",)
    assert len(talk.seen) == 3


def test_a_request_whose_replica_died_is_asked_again_and_a_failure_of_the_application_is_not():
    lost = httpx.Response(500, text="The actor died unexpectedly before finishing this task.")
    with client(lost, httpx.ReadError("cut"), httpx.Response(200, json=ANSWER)) as talk:
        assert talk.search("blue", gallery_id="a").ranking.ids == ("a",)
    assert len(talk.seen) == 3
    own = httpx.Response(500, json={"detail": "broken"}, headers={"content-type": "application/problem+json"})
    with client(own) as talk, pytest.raises(ServingError, match="500: broken"):
        talk.search("blue", gallery_id="a")
    assert len(talk.seen) == 1


def test_a_service_that_stays_busy_is_reported():
    with client(*[httpx.Response(503, headers={"retry-after": "0"}, text="no replica")] * 2, retries=1) as talk:
        with pytest.raises(ServingError, match="503: no replica"):
            talk.search("blue", gallery_id="a")


def test_a_refusal_carries_the_servers_sentence_and_is_not_repeated():
    with client(httpx.Response(422, json={"detail": "The text is empty."})) as talk:
        with pytest.raises(ServingError, match="422: The text is empty."):
            talk.search("", gallery_id="a")
    assert len(talk.seen) == 1


def test_an_unreachable_service_and_a_missing_file_are_said_in_words(tmp_path):
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
