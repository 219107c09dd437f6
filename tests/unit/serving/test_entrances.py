"""The gate in Ray's entrances: stand-ins for Ray's actors, a real uvicorn server for the deadline of headers."""

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections import namedtuple
from types import SimpleNamespace

import httpx
import pytest
import uvicorn
from ray.serve._private import haproxy
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from cirray.serving import entrances, gate
from cirray.serving.config import ServeArgs
from cirray.serving.entrances import EDITS, Entrances, guard_entrance, with_header_deadline, wrap_server
from cirray.serving.gate import Gate, GateRules

Endpoint = namedtuple("Endpoint", "app_name")


async def application(scope, receive, send):
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def server(monkeypatch):
    """A running uvicorn server of `application`, as Ray's proxies run one."""
    monkeypatch.setattr(gate, "_LANES", {})
    config = uvicorn.Config(lambda: application, factory=True, port=0, log_level="error", lifespan="off")
    made = uvicorn.Server(config)
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    while not made.started:
        assert thread.is_alive()
    made.port = made.servers[0].sockets[0].getsockname()[1]
    yield made
    made.should_exit = True
    thread.join(10)


def finished(value):
    task = asyncio.Future(loop=asyncio.new_event_loop())
    task.set_result(value)
    return task


def proxy_of(server, *apps):
    endpoints = {Endpoint(name): SimpleNamespace(route=route) for name, route in apps}
    router = SimpleNamespace(endpoints=endpoints)
    return SimpleNamespace(proxy_router=router, _start_http_server_task=finished((None, server)))


def test_the_gate_comes_into_a_running_proxy_once_and_for_its_application_alone(server):
    proxy = proxy_of(server, ("cirray", "/search"), ("other", "/"))
    url, evil = f"http://127.0.0.1:{server.port}", {"host": "evil.example"}
    assert httpx.get(f"{url}/search/v1", headers=evil).status_code == 200
    for _ in range(3):
        assert guard_entrance(proxy, "cirray", GateRules(hosts=gate.LOOPBACK))
    assert httpx.get(f"{url}/search/v1", headers=evil).status_code == 421
    assert httpx.get(f"{url}/search/v1").text == httpx.get(f"{url}/else", headers=evil).text == "ok"
    inner = server.config.loaded_app
    assert isinstance(inner, ProxyHeadersMiddleware) and isinstance(inner.app, Gate)
    assert inner.app._app is application


def test_an_application_that_the_proxy_does_not_know_yet_is_guarded_later(server):
    assert not guard_entrance(proxy_of(server), "cirray", GateRules())
    assert guard_entrance(proxy_of(server, ("cirray", "/")), "cirray", GateRules())


def test_headers_have_a_deadline_whether_they_drip_or_stop_and_answers_have_none(server):
    wrap_server(server.config, header_timeout_s=0.6)
    address = ("127.0.0.1", server.port)
    with socket.create_connection(address) as silent, socket.create_connection(address) as dripping:
        dripping.sendall(b"GET / HTTP/1.1\r\nx: ")
        for _ in range(4):
            dripping.sendall(b"x")
            silent.settimeout(0.2)
            try:
                assert silent.recv(1) == b""
                break
            except TimeoutError:
                pass
        for connection in (silent, dripping):
            connection.settimeout(5)
            try:
                assert connection.recv(10) == b""
            except ConnectionResetError:
                pass
    with socket.create_connection(address) as good:
        for _ in range(2):  # the second request of a connection has its own deadline
            good.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\n")
            threading.Event().wait(0.9)
            good.sendall(b"y")
            reply = b""
            while not reply.endswith(b"ok"):
                reply += good.recv(1000)
            assert reply.startswith(b"HTTP/1.1 200")


def test_a_server_whose_protocol_does_not_tell_when_headers_end_is_left_alone():
    class Other:
        pass

    config = SimpleNamespace(loaded_app=application, http_protocol_class=Other)
    wrap_server(config, 1.0)
    assert config.http_protocol_class is Other and isinstance(config.loaded_app, Gate)
    assert issubclass(with_header_deadline(Other), Other)


def test_haproxys_own_pages_are_edited_to_loopback_and_its_template_still_has_the_lines():
    for old in EDITS:
        assert old in haproxy.HAPROXY_CONFIG_TEMPLATE
    assert haproxy.HAProxyConfig().timeout_http_request_s is None


class Api:
    """Stands for Ray's HAProxyApi."""

    def __init__(self, folder):
        self.did = []
        self.cfg = SimpleNamespace(timeout_http_request_s=None, error_file_path=str(folder / "500.http"))

    async def stop(self):
        self.did.append("stop")

    async def start(self):
        self.did.append("start")


def test_haproxy_is_restarted_once_with_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr(Api, "__module__", haproxy.__name__)
    monkeypatch.setattr(haproxy, "HAPROXY_CONFIG_TEMPLATE", haproxy.HAPROXY_CONFIG_TEMPLATE)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    started = asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop)
    started.result()
    manager = SimpleNamespace(
        _haproxy=Api(tmp_path), event_loop=loop, _reload_lock=asyncio.Lock(),
        _haproxy_start_task=asyncio.run_coroutine_threadsafe(a_task(), loop).result(),
    )  # fmt: skip
    for _ in range(3):
        assert guard_entrance(manager, "cirray", GateRules(header_timeout_s=7))
    loop.call_soon_threadsafe(loop.stop)
    assert manager._haproxy.did == ["stop", "start"] and manager._haproxy.cfg.timeout_http_request_s == 7
    for old, new in EDITS.items():
        new = new.replace("PLACES", "96")
        assert new in haproxy.HAPROXY_CONFIG_TEMPLATE and (old in new or old not in haproxy.HAPROXY_CONFIG_TEMPLATE)
    head, _, body = (tmp_path / "500.http").read_bytes().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503") and b"Retry-After: 1" in head
    assert f"Content-Length: {len(body)}".encode() in head


def test_the_gate_is_brought_now_and_then_and_again_at_once_while_an_entrance_lacks_it(monkeypatch):
    answers, asked = [False, True, True], []

    async def guard_all():
        asked.append(1)
        return answers.pop(0)

    guards = Entrances(ServeArgs())
    monkeypatch.setattr(guards, "_guard", guard_all)
    for _ in range(5):
        asyncio.run(guards.guard())
    assert len(asked) == 2
    guards._guarded_at -= entrances.GUARDED_FOR_S
    asyncio.run(guards.guard())
    assert len(asked) == 3


def test_an_entrance_that_does_not_answer_costs_the_health_check_seconds_only(monkeypatch):
    monkeypatch.setattr(entrances, "GUARD_TIMEOUT_S", 0.05)
    guards = Entrances(ServeArgs())
    monkeypatch.setattr(guards, "_guard", lambda: asyncio.sleep(60))
    asyncio.run(asyncio.wait_for(guards.guard(), 5))
    assert guards._warned


async def a_task():
    return asyncio.get_running_loop().create_task(asyncio.sleep(0))


def test_a_ray_with_other_internals_costs_one_warning_and_not_the_service(monkeypatch, caplog):
    def gone(*given, **more):
        raise AttributeError("no such controller")

    monkeypatch.setattr(entrances.ray, "get_actor", gone)
    monkeypatch.setattr(entrances._LOG.parent, "propagate", True, raising=False)
    guards = Entrances(ServeArgs())
    with caplog.at_level("WARNING", logger="cirray.serving.entrances"):
        entrances._LOG.addHandler(caplog.handler)
        for _ in range(3):
            asyncio.run(guards.guard())
        entrances._LOG.removeHandler(caplog.handler)
    assert "without the gate" in caplog.text and "no such controller" in caplog.text
    assert guards._warned


def test_haproxys_own_pages_never_listen_on_every_interface(tmp_path):
    """The real HAProxy, started by the command that Ray starts, on the lines of Ray's own template."""
    lines = [line.strip() for line in haproxy.HAPROXY_CONFIG_TEMPLATE.splitlines() if "bind " in line]
    own = [line for line in lines if line.startswith(("bind :", "bind *:"))]
    assert len(own) == 2, "Ray's template has other lines now"
    ports = {name: free_port() for name in ("metrics_port", "stats_port")}
    binds = [line.replace("{{ config.", "").replace(" }}", "") for line in own]
    for name, port in ports.items():
        binds = [line.replace(name, str(port)) for line in binds]
    settings, log = tmp_path / "haproxy.cfg", tmp_path / "log"
    settings.write_text(
        "\n".join(["frontend own", "    mode http", "    timeout client 5s", *(f"    {b}" for b in binds)]) + "\n"
    )
    command = [sys.executable, "-m", "cirray.serving.haproxy", "-db", "-f", str(settings)]
    with open(log, "wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            heard = {port: wait_for(port, process, log) for port in ports.values()}
        finally:
            process.kill()
    assert heard == dict.fromkeys(ports.values(), {"0100007F"})


def wait_for(port, process, log):
    """Addresses, as the kernel writes them, on which a port is listened to."""
    while process.poll() is None:
        rows = [line.split() for line in open("/proc/net/tcp")][1:]
        found = {row[1][:8] for row in rows if int(row[1][9:], 16) == port and row[3] == "0A"}
        if found:
            return found
        time.sleep(0.02)
    pytest.fail(log.read_text())


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_an_entrance_is_quiet_when_no_request_is_inside_or_on_its_way(monkeypatch):
    lane = gate.Lane(GateRules())
    monkeypatch.setattr(gate, "_LANES", {"/": lane})

    async def told():
        lane.in_flight, loop, begin = 1, asyncio.get_running_loop(), time.monotonic()
        loop.call_later(0.3, setattr, lane, "in_flight", 0)
        loop.call_later(0.4, setattr, lane, "in_flight", 1)  # one that was not read yet
        loop.call_later(0.6, setattr, lane, "in_flight", 0)
        await entrances.quiet()
        return time.monotonic() - begin

    assert 0.6 < asyncio.run(told()) < 3
    lane.in_flight = 1
    monkeypatch.setattr(entrances, "QUIET_WITHIN_S", 0.3)
    asyncio.run(entrances.quiet())  # a service that is never quiet stops nevertheless
