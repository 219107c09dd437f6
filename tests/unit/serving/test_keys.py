"""Keys of the service: their file, the gate, the application, sites that may ask, and what must never be written."""

import asyncio
import json
import os
import time
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from cirray.cli.main import main
from cirray.core.errors import ConfigError
from cirray.serving import keys as module
from cirray.serving.api import make_api
from cirray.serving.config import ServeArgs, check_open
from cirray.serving.keys import KeyRing, read_keys, run_keys
from cirray.serving.keys_config import KeysRun
from cirray.serving.problems import RATE, ProblemError
from cirray.serving.service import DirectService

SEARCH = {"text": "make it blue", "gallery_id": "plain/00"}


def made(file, name="shop", **fields):
    """The text of a new key."""
    return run_keys(KeysRun(file=str(file), add=name, **fields)).split("\n")[0]


def bearer(key):
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "keys.json"


@pytest.fixture
def guarded(file, make_caller):
    made(file, "first")
    return make_caller(keys=str(file))


def refused(reply, status, kind):
    assert (reply.status_code, reply.headers["content-type"]) == (status, "application/problem+json")
    assert reply.json()["type"] == f"urn:cirray:problem:{kind}" and reply.json()["request_id"]
    return reply


def test_a_key_is_shown_once_and_its_file_holds_a_digest_for_its_owner_only(file, capsys):
    assert main(["keys", str(file), "--add", "shop", "--scopes", "read,write", "--rate", "20/second"]) == 0
    text = capsys.readouterr().out.split("\n")[0]
    assert text.startswith("cirray_") and len(text) > 50
    assert text.split("_", 2)[2] not in file.read_text() and os.stat(file).st_mode & 0o777 == 0o600
    assert main(["keys", str(file)]) == 0
    listed = capsys.readouterr().out
    assert "shop  read,write  all  20/second  never" in listed and text not in listed
    assert read_keys(file)[0].scopes == ("read", "write")
    assert made(file, "other") != text and [key.name for key in read_keys(file)] == ["shop", "other"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--add", "shop"], "There is a key 'shop' already"),
        (["--revoke", "shp"], "Did you mean 'shop'?"),
        (["--add", "a b"], "'a b' is no name of a key"),
        (["--add", "x", "--rate", "5/fortnight"], "'5/fortnight' is no rate; write 20/second"),
        (["--add", "x", "--scopes", "admin"], "'read' or 'write'"),
        (["--add", "x", "--scopes", "[]"], "needs at least one entry"),
        (["--add", "x", "--expires", "tomorrow"], "valid datetime or date"),
        (["--add", "x", "--revoke", "shop"], "both given"),
    ],
)
def test_a_key_that_cannot_be_made_is_refused_in_one_sentence(file, capsys, arguments, words):
    made(file)
    before = file.read_bytes()
    assert main(["keys", str(file), *arguments]) == 2
    assert words in capsys.readouterr().err and file.read_bytes() == before


def test_a_file_that_is_none_of_keys_is_named_without_its_content(file):
    with pytest.raises(ConfigError, match="keys.json' cannot be read: No such file"):
        read_keys(file)
    file.write_text('[{"name": "x", "id": "secret-thing"}]')
    with pytest.raises(ConfigError, match="is no file of keys") as told:
        read_keys(file)
    assert "secret-thing" not in str(told.value)


def test_without_a_key_only_health_and_the_packages_own_pages_answer(guarded, file):
    for path in ("/healthz", "/readyz", "/", "/docs", "/openapi.json", "/static/app.js"):
        assert guarded("GET", path).status_code == 200, path
    ways = [("GET", "/version"), ("GET", "/v1/gallery"), ("GET", "/v1/images/plain/00"), ("GET", "/v1/examples")]
    ways += [("POST", "/v1/search"), ("PUT", "/v1/images/x"), ("POST", "/"), ("GET", "/v1/images/x/healthz")]
    ways += [("GET", "/v1/images/static/../static/x"), ("DELETE", "/healthz")]
    for method, path in ways:
        reply = refused(guarded(method, path), 401, "no-key")
        assert reply.headers["www-authenticate"] == 'Bearer realm="cirray"', path
    assert guarded("POST", "/v1/search", json=SEARCH, headers=bearer(made(file))).status_code == 200


@pytest.mark.parametrize(
    "spoil",
    [
        lambda key: key[:-1] + ("A" if key[-1] != "A" else "B"), lambda key: key[:-1], lambda key: key + "A",
        lambda key: key.replace("cirray_", "", 1), lambda key: "cirray_00000000_" + key.split("_", 2)[2],
        lambda key: "", lambda key: "x", lambda key: "ü" * 9, lambda key: "_" * 70, lambda key: "a" * 9000,
    ],
)  # fmt: skip
def test_a_wrong_key_is_refused_whatever_is_wrong_with_it(guarded, file, spoil):
    key = made(file)
    given = spoil(key)
    reply = guarded("GET", "/version", headers={"authorization": f"Bearer {given}".encode()})
    assert 'error="invalid_token"' in refused(reply, 401, "no-key").headers["www-authenticate"]
    assert not given or given not in reply.text
    refused(guarded("GET", "/version", headers={"authorization": f"Basic {key}"}), 401, "no-key")
    assert guarded("GET", "/version", headers={"authorization": f"bearer  {key} "}).status_code == 200


def test_writing_needs_the_scope_write_and_searching_only_read(guarded, file):
    reader, writer = made(file, "reader"), made(file, "writer", scopes="read,write")
    only = made(file, "only-writes", scopes="write")
    for method, path in (("PUT", "/v1/images/x"), ("DELETE", "/v1/images/x"), ("POST", "/v1/images"), ("PATCH", "/x")):
        reply = refused(guarded(method, path, headers=bearer(reader)), 403, "forbidden")
        assert 'scope="write"' in reply.headers["www-authenticate"] and "'reader'" in reply.json()["detail"]
        assert guarded(method, path, headers=bearer(writer)).status_code not in (401, 403)
    for path in module.READ_POSTS:
        assert guarded("POST", path, json=SEARCH, headers=bearer(reader)).status_code not in (401, 403)
    refused(guarded("GET", "/v1/gallery", headers=bearer(only)), 403, "forbidden")


def test_the_scopes_follow_the_route_also_below_a_prefix(file):
    """Ray gives the application the whole path and its prefix as `root_path`."""
    key = made(file)

    async def answer(scope, receive, send):
        raise LookupError

    def ask(method, path, headers):
        scope = {"type": "http", "method": method, "path": path, "root_path": "/shop", "headers": headers}
        return asyncio.run(module.KeyCheck(answer, KeyRing(str(file)))(scope, None, None))

    shown = [(b"authorization", f"Bearer {key}".encode())]
    for method, path, headers in (
        ("GET", "/shop/healthz", []),
        ("GET", "/shop", []),
        ("POST", "/shop/v1/search", shown),
    ):
        with pytest.raises(LookupError):
            ask(method, path, headers)
    for path in ("/shop/v1/gallery", "/shop/x/healthz"):
        with pytest.raises(module.ProblemError, match="needs a key"):
            ask("GET", path, [])


def test_a_change_of_the_file_is_followed_within_a_second_and_without_a_restart(guarded, file, monkeypatch):
    key = made(file)
    assert guarded("GET", "/version", headers=bearer(key)).status_code == 200
    run_keys(KeysRun(file=str(file), revoke="shop"))
    assert module.LOOK_S < 1
    time.sleep(module.LOOK_S + 0.05)
    refused(guarded("GET", "/version", headers=bearer(key)), 401, "no-key")
    again = made(file)
    time.sleep(module.LOOK_S + 0.05)
    assert guarded("GET", "/version", headers=bearer(again)).status_code == 200


def test_nobody_is_let_in_while_the_file_cannot_be_read(guarded, file, monkeypatch, caplog):
    key, content = made(file), None
    monkeypatch.setattr(module, "LOOK_S", 0)
    assert guarded("GET", "/version", headers=bearer(key)).status_code == 200
    content = file.read_bytes()
    for spoil in (file.unlink, lambda: file.write_text("[{"), lambda: file.write_bytes(content[:40])):
        spoil()
        reply = refused(guarded("GET", "/version", headers=bearer(key)), 503, "unavailable")
        assert reply.headers["retry-after"] == "1" and str(file) not in reply.text
        assert guarded("GET", "/healthz").status_code == 200
    assert "nobody is let in" in caplog.text
    file.write_bytes(content)
    assert guarded("GET", "/version", headers=bearer(key)).status_code == 200


def test_a_key_ends_when_it_expires(guarded, file):
    soon = datetime.now(UTC) + timedelta(seconds=1)
    key = made(file, expires=soon)
    assert guarded("GET", "/version", headers=bearer(key)).status_code == 200
    time.sleep(1.05)
    assert "has expired" in refused(guarded("GET", "/version", headers=bearer(key)), 401, "no-key").json()["detail"]
    assert made(file, "later", expires="2999-01-01")


def test_a_rate_is_counted_for_each_key_and_says_when_to_come_back(file, retriever):
    slow, other = made(file, rate="3/second"), made(file, "other", rate="100/second")
    app = make_api(lambda: DirectService(retriever), ServeArgs(keys=str(file)))

    async def main():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            first = await asyncio.gather(*(client.get("/version", headers=bearer(slow)) for _ in range(5)))
            fast = [await client.get("/version", headers=bearer(other)) for _ in range(5)]
            await asyncio.sleep(2.0)
            return first, fast, await client.get("/version", headers=bearer(slow))

    first, fast, later = asyncio.run(main())
    assert sorted(reply.status_code for reply in first) == [200, 200, 200, 429, 429]
    reply = refused(next(reply for reply in first if reply.status_code == 429), 429, "rate-exceeded")
    assert 1 <= int(reply.headers["retry-after"]) <= 2 and "3 per 1 second" in reply.json()["detail"]
    assert {reply.status_code for reply in fast} == {200} and later.status_code == 200


def most_in_a_second(file, monkeypatch, rings, requests=300, gap_s=0.01):
    """Most requests of a key that pass in any second, of many that are spread over rings in turn; and how many pass."""
    key, now, passed = read_keys(file)[0], [1_000.95], []
    monkeypatch.setattr(time, "time", lambda: now[0])

    async def main():
        for number in range(requests):
            try:
                await rings[number % len(rings)].spend(key, len(rings))
                passed.append(now[0])
            except ProblemError as error:
                assert error.kind == RATE
            now[0] += gap_s

    asyncio.run(main())
    return max(sum(begin <= at < begin + 1 for at in passed) for begin in passed), len(passed)


def test_no_second_lets_more_pass_than_the_rate_wherever_it_begins(file, monkeypatch):
    made(file, rate="5/second")
    assert most_in_a_second(file, monkeypatch, [KeyRing(str(file))]) == (5, 15)


@pytest.mark.parametrize(("entrances", "most"), [(2, 6), (3, 6), (5, 5), (7, 7)])
def test_entrances_share_the_rate_of_a_key(file, monkeypatch, entrances, most):
    made(file, rate="5/second")
    rings = [KeyRing(str(file)) for _ in range(entrances)]
    found, passed = most_in_a_second(file, monkeypatch, rings)
    assert found == most and passed >= 3 * 5


def test_a_request_without_a_key_is_refused_before_its_body_is_read(file, retriever):
    made(file)
    app = make_api(lambda: DirectService(retriever), ServeArgs(keys=str(file)))

    async def body():
        yield b"{"
        raise AssertionError("the body was read")

    async def main():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post("/v1/search", content=body())

    refused(asyncio.run(main()), 401, "no-key")


@pytest.mark.parametrize(
    ("host", "fields", "opens"),
    [
        ("127.0.0.1", {}, True), ("localhost", {}, True), ("::1", {}, True), ("0.0.0.0", {}, False),
        ("::", {}, False), ("10.0.0.7", {}, False), ("0.0.0.0", {"keys": "k.json"}, True),
        ("0.0.0.0", {"open": True}, True),
    ],
)  # fmt: skip
def test_the_network_is_opened_only_with_keys_or_when_told_so(host, fields, opens):
    if opens:
        check_open(ServeArgs(**fields), host)
    else:
        with pytest.raises(ConfigError, match=f"host {host} opens .*keys=FILE.*open=true"):
            check_open(ServeArgs(**fields), host)


def test_the_command_refuses_an_open_network_and_a_missing_file_before_it_starts(capsys):
    assert main(["serve", "--host", "0.0.0.0", "--index", "x", "--checkpoint", "y"]) == 2
    assert "host 0.0.0.0 opens" in capsys.readouterr().err
    assert main(["serve", "--keys", "/no/such.json", "--index", "x", "--checkpoint", "y"]) == 2
    assert "'/no/such.json' cannot be read" in capsys.readouterr().err


def test_pages_of_named_sites_may_ask_and_others_may_not(file, make_caller):
    call = make_caller(keys=str(file), origins=["https://shop.example.org"])
    key = made(file)
    ask = {"origin": "https://shop.example.org", "access-control-request-method": "PUT"}
    ask |= {"access-control-request-headers": "authorization"}
    before = call("OPTIONS", "/v1/images/x", headers=ask)
    assert before.status_code == 200 and "PUT" in before.headers["access-control-allow-methods"]
    assert before.headers["access-control-allow-origin"] == "https://shop.example.org"
    for headers, status in ((bearer(key), 200), ({}, 401)):
        reply = call("GET", "/version", headers={"origin": "https://shop.example.org", **headers})
        assert reply.status_code == status
        assert reply.headers["access-control-allow-origin"] == "https://shop.example.org"
        other = call("GET", "/version", headers={"origin": "https://evil.example", **headers})
        assert "access-control-allow-origin" not in other.headers
    assert call("OPTIONS", "/version", headers=ask | {"origin": "https://evil.example"}).status_code == 400


def test_the_access_log_has_a_line_a_request_also_a_refused_one_and_never_a_key(file, tmp_path, make_caller):
    key, log = made(file), tmp_path / "access.jsonl"
    call = make_caller(keys=str(file), access_log=str(log), max_body_mb=0.01)
    call("POST", "/v1/search", json=SEARCH, headers={**bearer(key), "x-request-id": "mine"})
    call("GET", "/v1/images/plain%2F00", headers=bearer(key))
    call("GET", "/version", headers=bearer(f"{key}x"))
    call("POST", "/v1/search", content=b"x" * 20_000, headers=bearer(key))
    call("GET", f"/v1/search?key={key}")
    first, picture, wrong, large, _ = lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert set(first) == {"time", "request_id", "key", "method", "route", "status", "ms", "bytes"}
    assert (first["request_id"], first["key"], first["route"], first["status"]) == ("mine", "shop", "/v1/search", 200)
    assert (
        first["ms"] > 0
        and first["bytes"] > 100
        and abs(datetime.fromisoformat(first["time"]).timestamp() - time.time()) < 60
    )
    assert picture["route"] == "/v1/images/{image_id}" and (wrong["status"], wrong["key"]) == (401, "")
    assert large["status"] == 413 and len(lines) == 5
    assert key not in log.read_text() and key.split("_", 2)[2] not in log.read_text()


def test_an_access_log_that_cannot_be_written_costs_a_warning_and_no_request(make_caller, tmp_path, caplog):
    call = make_caller(access_log=str(tmp_path / "none" / "access.jsonl"))
    assert [call("GET", "/healthz").status_code for _ in range(3)] == [200] * 3
    assert caplog.text.count("access log cannot be written") == 1
