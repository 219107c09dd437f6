import asyncio
import json

import httpx
import pytest

from cirray.serving import gate as gates
from cirray.serving.config import ServeArgs
from cirray.serving.gate import LOOPBACK, Gate, GateRules, Lane, rules_of


class Inside:
    """An application that answers `ok` when it is told to, and remembers who reached it."""

    def __init__(self, hold=False, answers=()):
        self.seen, self.bodies, self.go, self.answers = [], [], asyncio.Event(), list(answers)
        if not hold:
            self.go.set()

    async def __call__(self, scope, receive, send):
        self.seen.append(dict(scope["headers"]))
        self.bodies.append((await receive())["body"])
        await self.go.wait()
        status, media = self.answers.pop(0) if self.answers else (200, b"text/plain")
        if status == 0:
            return
        if status < 0:
            raise RuntimeError("the replica is gone")
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", media)]})
        await send({"type": "http.response.body", "body": b"inside"})


def post(inside, rules, content=b"{}", headers=None, times=1):
    """Replies of `times` requests at once."""

    async def main():
        transport = httpx.ASGITransport(Gate(inside, Lane(rules)))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            asked = [
                client.post("/v1/search", content=content() if callable(content) else content, headers=headers)
                for _ in range(times)
            ]
            tasks = [asyncio.create_task(one) for one in asked]
            await asyncio.sleep(0.05)
            for _ in range(1000):  # turns of the event loop, which a busy machine may not have had in that time
                await asyncio.sleep(0)
            inside.go.set()
            return await asyncio.gather(*tasks)

    return asyncio.run(main())


def assert_problem(reply, status, name, words=""):
    assert (reply.status_code, reply.headers["content-type"]) == (status, "application/problem+json")
    assert reply.json()["type"] == f"urn:cirray:problem:{name}" and words in reply.json()["detail"]
    assert reply.json()["request_id"] == reply.headers["x-request-id"]
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_requests_beyond_the_places_are_refused_at_once_and_the_others_are_answered():
    inside = Inside(hold=True)
    replies = post(inside, GateRules(max_in_flight=3), times=10)
    full = [reply for reply in replies if reply.status_code != 200]
    assert len(full) == 7 and len(inside.seen) == 3
    for reply in full:
        assert_problem(reply, 429, "too-many-requests", "Try again")
        assert reply.headers["retry-after"] == "1"


def test_places_are_given_back_whatever_came_of_a_request():
    inside = Inside(answers=[(200, b""), (-1, b""), (-1, b""), (429, b"text/plain"), (200, b"")])
    rules = GateRules(max_in_flight=1)
    lane = Lane(rules)

    async def main():
        transport = httpx.ASGITransport(Gate(inside, lane))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [(await client.post("/v1/search", content=b"x")).status_code for _ in range(4)]

    assert asyncio.run(main()) == [200, 503, 429, 200]
    assert (lane.in_flight, lane.held, lane.slow) == (0, 0, {})


def test_health_is_answered_when_all_places_are_taken():
    inside, lane = Inside(), Lane(GateRules(max_in_flight=1))
    lane.in_flight = 1

    async def main():
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(Gate(inside, lane)), base_url="http://localhost"
        ) as client:
            return [(await client.get(path)).status_code for path in ("/healthz", "/readyz", "/v1/gallery")]

    assert asyncio.run(main()) == [200, 200, 429]


def drip(pieces, seconds):
    async def body():
        for _ in range(pieces):
            yield b"x"
            await asyncio.sleep(seconds)

    return body


def test_slow_bodies_take_no_places_and_end_at_their_deadline(monkeypatch):
    monkeypatch.setattr(gates, "GRACE_S", 0.02)
    rules = GateRules(max_in_flight=1, body_timeout_s=0.3, slow_per_client=100)
    inside, lane = Inside(), Lane(rules)

    async def main():
        transport = httpx.ASGITransport(Gate(inside, lane))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            slow = [asyncio.create_task(client.post("/v1/search", content=drip(99, 0.05)())) for _ in range(50)]
            await asyncio.sleep(0.1)
            quick = await client.post("/v1/search", content=b"{}")
            assert lane.in_flight == 0
            return quick, await asyncio.gather(*slow)

    quick, slow = asyncio.run(main())
    assert quick.status_code == 200 and inside.bodies == [b"{}"]
    for reply in slow:
        assert_problem(reply, 408, "body-timeout", "0.3 s")
        assert reply.headers["connection"] == "close"
    assert (lane.held, lane.slow) == (0, {})


def test_one_client_may_send_only_so_many_slow_bodies_and_quick_ones_all_the_same(monkeypatch):
    monkeypatch.setattr(gates, "GRACE_S", 0.05)
    inside = Inside()
    rules = GateRules(body_timeout_s=5, slow_per_client=2)
    replies = post(inside, rules, content=drip(6, 0.03), times=5)
    assert sorted(reply.status_code for reply in replies) == [200, 200, 408, 408, 408]
    assert "2 other bodies" in next(reply for reply in replies if reply.status_code == 408).json()["detail"]
    assert [reply.status_code for reply in post(Inside(), rules, times=20)] == [200] * 20


def test_a_body_arrives_inside_in_one_piece():
    inside = Inside()
    assert post(inside, GateRules(), content=drip(5, 0.001))[0].status_code == 200
    assert inside.bodies == [b"xxxxx"]


def test_long_bodies_are_refused_announced_or_not_and_together():
    big = b"x" * 2000
    assert_problem(post(Inside(), GateRules(max_body_bytes=1000), big)[0], 413, "body-too-large")

    async def unannounced():
        for _ in range(4):
            yield big[:500]

    assert_problem(post(Inside(), GateRules(max_body_bytes=1000), unannounced)[0], 413, "body-too-large")
    many = post(Inside(hold=True), GateRules(max_held_bytes=5000), big, times=6)
    assert sorted(reply.status_code for reply in many) == [200, 200, 503, 503, 503, 503]


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("localhost:8000", True), ("127.0.0.1", True), ("LOCALHOST.", True), ("[::1]:8000", True), ("[::1]", True),
        ("evil.example", False), ("localhost.evil.example", False), ("127.0.0.1.nip.io:8000", False), ("", False),
    ],
)  # fmt: skip
def test_a_loopback_service_answers_to_loopback_names_only(host, answered):
    rules = rules_of(ServeArgs(), "127.0.0.1")
    reply = post(Inside(), rules, headers={"host": host})[0]
    if answered:
        assert reply.status_code == 200
    else:
        assert_problem(reply, 421, "wrong-host", "allowed_hosts")


def test_hosts_can_be_named_and_an_open_service_answers_to_every_name():
    named = rules_of(ServeArgs(allowed_hosts=["*.Example.org", "search.test"]), "0.0.0.0")
    for host, status in (("a.example.org", 200), ("search.test:80", 200), ("example.org", 421), ("localhost", 421)):
        assert post(Inside(), named, headers={"host": host})[0].status_code == status
    assert rules_of(ServeArgs(), "0.0.0.0").hosts == () and rules_of(ServeArgs(), "::1").hosts == LOOPBACK
    assert rules_of(ServeArgs(allowed_hosts=[]), "127.0.0.1").hosts == ()


def test_no_header_is_a_server_error_and_rays_own_switches_stay_outside():
    inside = Inside()
    headers = [
        ("x-request-id", b"\xff\xfe"), ("x-other", b"caf\xe9"), ("x-session-id", b"\xff"), ("x-good", "ü".encode()),
        ("x-request-timeout-seconds", b"0"), ("x-request-disconnect-disabled", b"?1"), ("host", b"localhost"),
    ]  # fmt: skip
    assert post(inside, GateRules(), headers=headers)[0].status_code == 200
    seen = inside.seen[0]
    assert {b"x-other", b"x-session-id", b"x-request-timeout-seconds", b"x-request-disconnect-disabled"} & set(
        seen
    ) == set()
    assert seen[b"x-good"].decode() == "ü" and len(seen[b"x-request-id"]) == 32
    for value in seen.values():
        value.decode("utf-8")


def test_a_harmless_request_id_reaches_the_application_and_a_hostile_one_does_not():
    inside = Inside()
    post(inside, GateRules(), headers={"x-request-id": "mine-1"})
    post(inside, GateRules(), headers={"x-request-id": "<script>"})
    assert inside.seen[0][b"x-request-id"] == b"mine-1" and b"<" not in inside.seen[1][b"x-request-id"]


PROBLEM = b"application/problem+json"


@pytest.mark.parametrize(
    ("answers", "status", "asked"),
    [
        ([(500, b"text/plain"), (200, b"")], 200, 2),  # a replica died under the request; another answers
        ([(0, b""), (200, b"")], 200, 2),
        ([(-1, b""), (200, b"")], 200, 2),
        ([(500, b"text/plain"), (500, b"text/plain")], 503, 2),
        ([(404, b"text/plain")], 503, 1),  # Ray knows no such route: the application is being replaced or stopped
        ([(503, b"text/plain")], 503, 1),
        ([(408, b"text/plain")], 503, 1),  # Ray's own deadline
        ([(429, b"text/plain")], 429, 1),
    ],
)
def test_rays_plain_refusals_become_problem_documents_or_a_second_try(answers, status, asked):
    inside = Inside(answers=answers)
    reply = post(inside, GateRules(), b"the body")[0]
    assert reply.status_code == status and inside.bodies == [b"the body"] * asked
    if status != 200:
        assert_problem(reply, status, "too-many-requests" if status == 429 else "unavailable")
        assert reply.headers["retry-after"] == "1"


@pytest.mark.parametrize("status", [404, 422, 500, 503])
def test_the_applications_own_problems_pass_as_they_are_and_are_not_repeated(status):
    inside = Inside(answers=[(status, PROBLEM)])
    reply = post(inside, GateRules())[0]
    assert (reply.status_code, reply.content) == (status, b"inside") and len(inside.seen) == 1


def test_paths_without_a_lane_and_rays_own_pass_untouched(monkeypatch):
    monkeypatch.setattr(gates, "_LANES", {})
    gates.open_lane("/search", GateRules(hosts=("only.here",)))
    inside = Inside()

    async def main():
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(Gate(inside)), base_url="http://localhost"
        ) as client:
            return [
                (await client.get(path)).status_code
                for path in ("/other", "/searching", "/search", "/search/x", "/-/healthz")
            ]

    assert asyncio.run(main()) == [200, 200, 421, 421, 200]


def test_a_client_that_leaves_while_its_body_arrives_reaches_nobody():
    inside, lane = Inside(), Lane(GateRules())
    messages = [{"type": "http.request", "body": b"x", "more_body": True}, {"type": "http.disconnect"}]

    async def receive():
        return messages.pop(0)

    async def send(message):
        raise AssertionError(message)

    scope = {"type": "http", "path": "/v1/search", "headers": [], "client": ("1.2.3.4", 5)}
    asyncio.run(Gate(inside, lane)(scope, receive, send))
    assert inside.seen == [] and lane.held == 0


def test_the_whole_application_behind_its_gate_says_problems_of_both_kinds(make_caller):
    call = make_caller(allowed_hosts=["test"])
    assert call.search(text="blue", gallery_id="plain/00").status_code == 200
    wrong = call("GET", "/version", headers={"host": "evil.example"})
    assert wrong.status_code == 421 and json.loads(wrong.text)["request_id"] == wrong.headers["x-request-id"]
    assert call("GET", "/version", headers={"x-request-id": b"\xff\xfe"}).status_code == 200
