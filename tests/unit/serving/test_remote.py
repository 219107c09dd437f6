"""Pictures by URL: allowed hosts, public addresses, limits; by a made-up resolver and a server in this process."""

import asyncio
import base64
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from cirray.core.errors import DataError
from cirray.serving import api, remote
from cirray.serving.remote import MAX_PICTURES, Remote, is_public

PUBLIC, OTHER = "93.184.216.34", "2606:4700::1111"
NAMES = {
    "img.example.org": [PUBLIC], "six.example.org": [OTHER], "inside.example.org": ["10.0.0.8"],
    "half.example.org": [PUBLIC, "127.0.0.1"], "nothing.example.org": [], "elsewhere.test": [PUBLIC],
}  # fmt: skip


class Web:
    """Answers by URL path; remembers what was asked, and where."""

    def __init__(self, **answers):
        self.asked, self.resolved = [], []
        self.answers = {"/a.png": lambda _: httpx.Response(200, stream=httpx.ByteStream(b"picture")), **answers}

    async def resolve(self, host, port):
        self.resolved.append((host, port))
        return NAMES[host] if host in NAMES else [host.strip("[]")]

    def reply(self, request):
        self.asked.append(request)
        found = self.answers[request.url.path]
        return found(request) if callable(found) else found

    def get(self, url, hosts=("*.example.org",), most=100):
        made = Remote(hosts, most, self.resolve, transport=httpx.MockTransport(self.reply))
        return asyncio.run(made.request().get(url))


def test_a_picture_is_fetched_from_the_address_that_was_checked_in_the_host_s_name():
    web = Web()
    assert web.get("https://img.example.org/a.png?x=1#part") == b"picture"
    (request,) = web.asked
    assert str(request.url) == f"https://{PUBLIC}/a.png?x=1" and request.headers["host"] == "img.example.org"
    assert request.extensions["sni_hostname"] == "img.example.org" and web.resolved == [("img.example.org", 443)]
    assert web.get("http://six.example.org:8080/a.png", hosts=["six.example.org:8080"]) == b"picture"
    assert web.asked[1].url.host == OTHER and web.asked[1].headers["host"] == "six.example.org:8080"
    assert "authorization" not in request.headers and "cookie" not in request.headers


@pytest.mark.parametrize(
    "url, said",
    [
        ("https://elsewhere.test/a.png", "not among image_hosts"), ("https://example.org/a.png", "not among"),
        ("https://img.example.org.evil.test/a.png", "not among"), ("https://img.example.org:8080/a.png", "not among"),
        ("https://user:pw@img.example.org/a.png", "no URL of a picture"), ("https:///a.png", "no URL"),
        ("https://img.example.org:x/a.png", "is no URL"), ("https://img.example.org/a.png\r\nx: y", "no URL"),
        ("https://inside.example.org/a.png", "not public"), ("https://half.example.org/a.png", "not public"),
        ("https://nothing.example.org/a.png", "not public"),
    ],
)  # fmt: skip
def test_a_url_of_another_host_or_address_is_refused_before_anything_is_asked(url, said):
    web = Web()
    with pytest.raises(DataError, match=said):
        web.get(url)
    assert web.asked == []


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1",
        "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001::1", "198.18.0.1", "192.0.2.1",
    ],
)  # fmt: skip
def test_no_address_inside_a_network_is_public_even_where_every_host_is_allowed(address):
    assert not is_public(address) and is_public(PUBLIC) and is_public(OTHER)
    web = Web()
    with pytest.raises(DataError, match="not public"):
        web.get(f"http://{f'[{address}]' if ':' in address else address}/a.png", hosts=["*"])
    assert web.asked == []


def leads(place):
    return httpx.Response(302, headers={"location": place})


def test_a_redirect_is_checked_as_the_url_was():
    web = Web(**{"/go": leads("/a.png"), "/in": leads("http://inside.example.org/a.png"), "/round": leads("/round")})
    assert web.get("https://img.example.org/go") == b"picture"
    assert web.resolved == [("img.example.org", 443)] * 2
    for path, said in (("/in", "not public"), ("/round", "redirected more than 3")):
        with pytest.raises(DataError, match=said):
            web.get(f"https://img.example.org{path}")
    web.answers["/out"] = leads("https://elsewhere.test/a.png")
    with pytest.raises(DataError, match="'elsewhere.test' are not taken"):
        web.get("https://img.example.org/out")
    assert {request.url.host for request in web.asked} == {PUBLIC}


def test_a_name_that_resolves_to_another_address_a_moment_later_leads_nowhere_else():
    web = Web()
    answers = iter([[PUBLIC], ["127.0.0.1"]])

    async def turncoat(host, port):
        return next(answers)

    made = Remote(["*"], 100, turncoat, transport=httpx.MockTransport(web.reply))
    assert asyncio.run(made.request().get("http://img.example.org/a.png")) == b"picture"
    assert web.asked[0].url.host == PUBLIC and next(answers) == ["127.0.0.1"]  # asked once, and that is what counts


def test_what_is_too_large_too_slow_or_no_answer_is_said_without_waiting_for_it(monkeypatch):
    async def endless():
        while True:
            yield b"x" * 64

    def broken(request):
        raise httpx.ConnectError("refused at 10.0.0.8")

    async def late(request):
        await asyncio.sleep(30)

    web = Web(
        **{
            "/announced": lambda _: httpx.Response(200, headers={"content-length": "101"}, content=endless()),
            "/endless": lambda _: httpx.Response(200, content=endless()), "/gone": httpx.Response(404),
            "/broken": broken,
        }
    )  # fmt: skip
    for path, said in (
        ("announced", "more than"), ("endless", "more than"), ("gone", "answered 404"), ("broken", "cannot be fetched")
    ):  # fmt: skip
        with pytest.raises(DataError, match=said) as told:
            web.get(f"https://img.example.org/{path}")
        assert "10.0.0.8" not in str(told.value)
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.05)
    made = Remote(["*"], 100, web.resolve, transport=httpx.MockTransport(late))
    with pytest.raises(DataError, match=r"has not come within 0\.05 s"):
        asyncio.run(made.request().get("https://img.example.org/a.png"))


def test_the_pictures_of_one_request_share_its_limits():
    web = Web()
    made = Remote(["*"], 10, web.resolve, transport=httpx.MockTransport(web.reply))

    async def twice():
        fetches = made.request()
        await fetches.get("https://img.example.org/a.png")
        with pytest.raises(DataError, match="more than"):
            await fetches.get("https://img.example.org/a.png")
        for _ in range(MAX_PICTURES):
            with pytest.raises(DataError, match=f"more than (the|{MAX_PICTURES} pictures)"):
                await fetches.get("https://img.example.org/a.png")

    asyncio.run(twice())


@pytest.fixture
def stub(picture):
    """A server of one picture on loopback, and its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.headers["host"].startswith("img.test:") else 421)
            self.end_headers()
            self.wfile.write(picture(5))

        def log_message(self, *about):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


async def to_loopback(host, port):
    return ["127.0.0.1"]


def test_a_search_by_url_is_that_by_the_picture_in_every_place_of_a_query(make_caller, stub, picture, monkeypatch):
    url, coded = f"http://img.test:{stub}/a.png", base64.b64encode(picture(5)).decode()

    def bodies(image):
        return [
            {"image": image, "text": "blue"}, {"references": [{"image": image}, {"gallery_id": "plain/00"}]},
            {"text": "blue", "gallery_id": "plain/00", "negative": {"image": image}},
        ]  # fmt: skip

    monkeypatch.setattr(api, "Remote", partial(Remote, resolver=to_loopback))
    asked = make_caller(image_hosts=[f"img.test:{stub}"])
    assert "not public" in asked("POST", "/v1/search", json=bodies(url)[0]).json()["detail"]
    monkeypatch.setattr(api, "Remote", partial(Remote, resolver=to_loopback, public=lambda address: True))
    asked, off = make_caller(image_hosts=[f"img.test:{stub}"]), make_caller()
    for by_url, by_bytes in zip(bodies(url), bodies(coded), strict=True):
        one, other = (asked("POST", "/v1/search", json=body) for body in (by_url, by_bytes))
        assert one.status_code == 200 and one.json()["hits"] == other.json()["hits"]
    answers = asked("POST", "/v1/search:batch", json={"queries": [*bodies(url), {"image": "http://other.test/a"}]})
    good, bad = answers.json()["answers"][:3], answers.json()["answers"][3]
    assert all(item["answer"] for item in good) and "'other.test' are not taken" in bad["problem"]["detail"]
    told = off("POST", "/v1/search", json=bodies(url)[0])
    assert told.status_code == 422 and "Pictures by URL are off" in told.json()["detail"]
