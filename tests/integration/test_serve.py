"""`make serve`, as a new user types it, over HTTP. One start for all tests; the last one stops it."""

import base64
import json
import os
import re
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from cirray.core.errors import ServingError
from cirray.index.shards import shard_of
from cirray.search_engine import SearchEngine
from cirray.serving.client import SearchClient
from cirray.serving.keys import run_keys
from cirray.serving.keys_config import KeysRun

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]
TINY = SimpleNamespace(**runpy.run_path(str(ROOT / "tests" / "fixtures" / "tiny_service.py")))
START_S = 240


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(home):
    """A new shell's: nothing of Ray's is set but a cluster of its own; the token goes into an empty home."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {
        **kept,
        "HOME": str(home),
        "RAY_ADDRESS": "local",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "RAY_metrics_report_interval_ms": "2000",
    }


def shipped_config(tiny, port, folder):
    config = yaml.safe_load((ROOT / "serve_configs" / "retriever.yaml").read_text())
    config["http_options"]["port"] = port
    config["applications"][0]["args"] |= {"checkpoint": tiny.checkpoint, "index": tiny.index, "max_body_mb": 1}
    config["applications"][0]["args"] |= {"keys": str(folder / "keys"), "access_log": str(folder / "access.jsonl")}
    config["applications"][0]["args"] |= {"galleries": {"again": tiny.index}, "shards": 2, "partial": True}
    return config


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return TINY.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def running(tiny, tmp_path_factory):
    folder, port = tmp_path_factory.mktemp("serve"), free_port()
    (folder / "retriever.yaml").write_text(yaml.safe_dump(shipped_config(tiny, port, folder)))
    key = run_keys(KeysRun(file=str(folder / "keys"), add="tests")).split("\n")[0]
    (folder / "home").mkdir()
    command = [str(Path(sys.executable).parent / "cirray"), "serve", str(folder / "retriever.yaml")]
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(
            command, cwd=ROOT, env=environment(folder / "home"), stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", server, folder / "log")
        yield SimpleNamespace(url=f"http://127.0.0.1:{port}", server=server, log=folder / "log", key=key, folder=folder)
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def url(running):
    return running.url


def wait_until_ready(url, server, log):
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.3)
    pytest.fail("the service did not start:\n" + log.read_text(errors="replace")[-3000:])


@pytest.fixture(scope="module")
def client(running):
    with SearchClient(running.url, key=running.key) as made:
        yield made


@pytest.fixture(scope="module")
def http(running):
    with httpx.Client(headers={"authorization": f"Bearer {running.key}"}) as made:
        yield made


def post_head(key, length, path="/v1/search"):
    """Headers of a search whose body follows."""
    return (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    ).encode()


@pytest.fixture(scope="module")
def retriever(tiny):
    return SearchEngine.open(tiny.checkpoint, tiny.index)


def test_http_answers_are_the_retrievers_answers(client, retriever, tiny):
    for name in retriever.gallery.ids[::6]:
        for text in ("make it blue", "add a small green star"):
            over_http, here = client.search(text, gallery_id=name, k=7), retriever.search(text, gallery_id=name, k=7)
            assert over_http.ranking.ids == here.ids
            assert over_http.ranking.scores == pytest.approx(here.scores, abs=1e-6)
    assert over_http.index_digest == tiny.manifest.digest
    assert over_http.encoder_digest == retriever.encoder.digest


def test_a_further_gallery_answers_by_its_name(client, running, retriever):
    assert [item["name"] for item in client.galleries()] == ["default", "again"]
    with SearchClient(running.url, key=running.key, gallery="again") as again:
        found = again.search("make it blue", gallery_id="plain/06", k=7).ranking.ids
        assert found == retriever.search("make it blue", gallery_id="plain/06", k=7).ids
        assert again.image("a b/pïc 01") == retriever.gallery.picture("a b/pïc 01")


def processes(running, name):
    """Numbers of the service's own processes of a name."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            own = f"HOME={running.folder / 'home'}".encode() in (place / "environ").read_bytes().split(b"\0")
            found += [int(place.name)] if own and name.encode() in (place / "cmdline").read_bytes() else []
        except OSError:  # gone meanwhile, or another user's
            continue
    return found


def test_a_killed_and_a_hanging_searcher_cost_their_share_of_the_answers_until_they_are_back_and_no_request(
    running, url, http, retriever
):
    asked = {"text": "make it blue", "gallery_id": "a b/pïc 01", "k": 24}
    whole = retriever.search("make it blue", gallery_id="a b/pïc 01", k=24).ids
    lost = 1 - shard_of(asked["gallery_id"], 2)
    left = tuple(name for name in whole if shard_of(name, 2) != lost)

    def share():
        reply = http.post(f"{url}/v1/search", json=asked, timeout=30)
        assert reply.status_code == 200
        found = reply.json()["searched"]
        assert tuple(hit["id"] for hit in reply.json()["hits"]) == (whole if found == 1 else left)
        assert reply.headers.get("x-cirray-searched") == (None if found == 1 else f"{found:g}")
        assert found in (1, pytest.approx((len(left) + 1) / 24, abs=1e-5))
        return found

    (victim,) = processes(running, f"Searcher{lost + 1}")
    os.kill(victim, signal.SIGKILL)  # the answer may wait for the next process, or come from the others
    end = time.monotonic() + 90
    while share() < 1 or not (there := processes(running, f"Searcher{lost + 1}")):
        assert time.monotonic() < end
    os.kill(there[0], signal.SIGSTOP)
    try:
        assert share() < 1 and http.get(f"{url}/readyz").json()["status"] == "degraded"
    finally:
        os.kill(there[0], signal.SIGCONT)
    end = time.monotonic() + 60
    while share() < 1 or http.get(f"{url}/readyz").json() != {"status": "ready", "faults": []}:
        assert time.monotonic() < end  # every gallery looks for its searchers by itself


def test_an_upload_answers_as_its_gallery_id_does(client, url, tiny, http):
    path = tiny.images / "plain" / "06.png"
    by_id = client.search("make it blue", gallery_id="plain/06", k=9, exclude_reference=False).ranking
    by_file = client.search("make it blue", image=path, k=9, exclude_reference=False).ranking
    body = {"text": "make it blue", "image": base64.b64encode(path.read_bytes()).decode(), "k": 9}
    by_json = [hit["id"] for hit in http.post(f"{url}/v1/search", json=body).json()["hits"]]
    assert by_id.ids == by_file.ids == tuple(by_json)
    assert by_id.scores == pytest.approx(by_file.scores, abs=1e-6)


def test_many_clients_at_once_get_the_answers_they_would_get_alone(client, retriever):
    asked = [(f"make it {word}", name) for word in ("blue", "red", "green", "big") for name in retriever.gallery.ids]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda item: client.search(item[0], gallery_id=item[1], k=3).ranking.ids, asked))
    assert found == [retriever.search(text, gallery_id=name, k=3).ids for text, name in asked]


def test_the_gallery_its_pictures_and_the_page_are_served(client, url, retriever, http):
    assert client.gallery(limit=100) == list(retriever.gallery.ids)
    assert client.image("a b/pïc 01") == retriever.gallery.picture("a b/pïc 01")
    large = http.get(f"{url}/v1/images/plain/00?size=large")
    assert large.status_code == 200 and large.headers["etag"].endswith('-large"')
    page = http.get(url)
    assert page.status_code == 200 and "static/app.js" in page.text
    assert http.get(f"{url}/static/app.js").headers["content-type"].startswith("text/javascript")


def test_health_version_and_openapi(client, url, tiny, http):
    assert http.get(f"{url}/healthz").json() == {"status": "ok"}
    assert http.get(f"{url}/readyz").json() == {"status": "ready", "faults": []}
    assert client.version()["gallery_size"] == 24
    assert http.get(f"{url}/v1/examples").json() == {"queries": []}
    assert "/v1/search" in http.get(f"{url}/openapi.json").json()["paths"]


def test_the_request_id_is_echoed_once(url, http):
    reply = http.get(f"{url}/nope", headers={"x-request-id": "mine-1"})
    assert reply.headers.get_list("x-request-id") == ["mine-1"]
    assert reply.json()["request_id"] == "mine-1"
    assert reply.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"text": "", "gallery_id": "plain/00"}, 422),
        ({"text": "blue", "gallery_id": "nobody"}, 404),
        ({"k": 3}, 422),
        ({"text": "blue", "gallery_id": "plain/00", "kk": 1}, 422),
    ],
)
def test_errors_are_problem_documents(url, body, status, http):
    reply = http.post(f"{url}/v1/search", json=body)
    assert (reply.status_code, reply.headers["content-type"]) == (status, "application/problem+json")
    assert reply.json()["detail"]


def test_a_body_above_the_cap_is_answered_413(url, http):
    reply = http.post(f"{url}/v1/search", files={"image": b"x" * (3 * 2**20)}, data={"text": "blue"})
    assert reply.status_code == 413 and reply.json()["type"].endswith("body-too-large")


def damaged_pictures(count=60):
    rng = np.random.default_rng(0)
    for number in range(count):
        data = bytearray(TINY.picture(number, kind=("PNG", "JPEG", "WEBP", "GIF", "BMP")[number % 5]))
        for _ in range(int(rng.integers(0, 5))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        yield bytes(data[: int(rng.integers(0, len(data) + 1))] if number % 3 else data)
    yield from (b"", b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PNG\r\n\x1a\n" * 50, bytes(rng.bytes(5000)))


def test_damaged_uploads_are_never_server_errors_and_the_next_query_is_right(url, client, retriever, http):
    replies = [
        http.post(f"{url}/v1/search", files={"image": ("x", data)}, data={"text": "blue"})
        for data in damaged_pictures()
    ]
    statuses = {reply.status_code for reply in replies}
    assert statuses <= {200, 422} and 422 in statuses
    assert (
        client.search("blue", gallery_id="plain/00").ranking.ids[:5]
        == retriever.search("blue", gallery_id="plain/00").ids[:5]
    )


def test_the_client_says_the_servers_sentence(client):
    with pytest.raises(ServingError, match="404: The gallery has no image 'nobody'"):
        client.search("blue", gallery_id="nobody")


@pytest.mark.parametrize("name", ["x-request-id", "x-session-id", "serve_multiplexed_model_id", "x-other"])
def test_a_header_that_is_not_utf8_is_no_server_error(url, name, http):
    reply = http.get(f"{url}/version", headers=[(name.encode(), b"\xff\xfe")])
    assert reply.status_code == 200 and len(reply.headers["x-request-id"]) == 32


def test_a_foreign_host_name_that_resolves_here_is_refused(url, http):
    reply = http.get(f"{url}/v1/gallery", headers={"host": "evil.example"})
    assert (reply.status_code, reply.headers["content-type"]) == (421, "application/problem+json")
    assert http.get(f"{url}/-/healthz", headers={"host": "10.0.0.7"}).status_code == 200


def test_slow_bodies_do_not_keep_others_out(url, client, running):
    head = post_head(running.key, 99) + b"{"
    address = ("127.0.0.1", int(url.rpartition(":")[2]))
    slow = [socket.create_connection(address) for _ in range(120)]
    try:
        for connection in slow:
            connection.sendall(head)
        begin = time.monotonic()
        assert client.search("blue", gallery_id="plain/00").ranking.ids
        assert time.monotonic() - begin < 5
        slow[-1].settimeout(10)  # one client may send 16 of them
        assert slow[-1].recv(100).startswith(b"HTTP/1.1 408")
    finally:
        for connection in slow:
            connection.close()


def test_without_a_key_the_service_says_that_it_needs_one(url):
    for reply in (httpx.get(f"{url}/v1/gallery"), httpx.post(f"{url}/v1/search", json={"text": "x"})):
        assert (reply.status_code, reply.json()["type"]) == (401, "urn:cirray:problem:no-key")
        assert reply.headers["www-authenticate"].startswith("Bearer")
    assert httpx.get(f"{url}/healthz").status_code == 200 == httpx.get(f"{url}/").status_code


def test_the_access_log_names_the_key_and_no_log_holds_it(running, http):
    http.get(f"{running.url}/v1/gallery", headers={"x-request-id": "looked-for"})
    found, end = None, time.monotonic() + 20
    while found is None and time.monotonic() < end:  # the line is written when the answer is out
        lines = [json.loads(line) for line in (running.folder / "access.jsonl").read_text().splitlines()]
        found = next((line for line in lines if line["request_id"] == "looked-for"), None)
    assert (found["key"], found["route"], found["status"]) == ("tests", "/v1/gallery", 200)
    secret = running.key.split("_", 2)[2].encode()
    logs = [path for path in running.folder.rglob("*") if path.is_file()]
    assert len(logs) > 3 and [path for path in logs if secret in path.read_bytes()] == []


def test_a_prometheus_finds_the_metrics_of_the_board_and_they_count_what_was_asked(url, http, client):
    def samples():
        families = text_string_to_metric_families(http.get(f"{url}/metrics").text)
        return [sample for family in families for sample in family.samples]

    def count():
        name, labels = "ray_cirray_search_ms_count", ("answer",)
        return sum(s.value for s in samples() if s.name == name and s.labels["phase"] in labels)

    def settled():
        """The count when it has not moved for four looks, longer than a report takes."""
        seen = [count()]
        while len(seen) < 5 or len(set(seen[-5:])) > 1:
            time.sleep(1.0)
            seen.append(count())
        return seen[-1]

    before = settled()
    for _ in range(7):
        client.search("blue", gallery_id="plain/00")
    assert settled() == before + 7
    board = (ROOT / "serve_configs" / "grafana.json").read_text()
    wanted, found, end = set(re.findall(r"ray_(?:cirray|serve)_\w+", board)), {}, time.monotonic() + 60
    while wanted - set(found) and time.monotonic() < end:  # a gauge is exported while it is fresh
        client.search("blue", gallery_id="plain/00")
        found |= {sample.name: sample for sample in samples()}
        time.sleep(0.5)
    assert wanted - set(found) == set()
    assert found["ray_cirray_index_images"].value == 24 and found["ray_cirray_index_images"].labels["replica"]
    assert httpx.get(f"{url}/metrics").status_code == 401


def test_the_api_is_explained_at_docs(url, http):
    assert "/v1/search" in http.get(f"{url}/docs").text


def test_told_to_stop_the_service_finishes_open_requests_and_ends_in_ten_seconds(running):
    """The last test of this file: SIGTERM, as containers and systemd send it."""
    address = ("127.0.0.1", int(running.url.rpartition(":")[2]))
    asked = [{"text": f"make it blue {n}", "gallery_id": "plain/00", "k": 3} for n in range(10)]
    body = json.dumps({"queries": asked}).encode()
    head = post_head(running.key, len(body), "/v1/search:batch")
    connections = [socket.create_connection(address) for _ in range(80)]
    for connection in connections:
        connection.sendall(head + body)
    answered, _, _ = select.select(connections, [], [], 20)
    begin = time.monotonic()
    running.server.send_signal(signal.SIGTERM)
    for connection in connections:
        connection.settimeout(20)
    statuses = Counter(connection.recv(4096)[9:12] for connection in connections)
    assert statuses == {b"200": 80}
    assert 0 < len(answered) < 80  # the others were answered after it had been told
    assert running.server.wait(60) == 0, running.log.read_text(errors="replace")[-3000:]
    assert time.monotonic() - begin < 10 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    told = running.log.read_text(errors="replace")
    assert "Traceback" not in told and "graceful_shutdown failed" not in told
    assert "Token authentication" not in told
