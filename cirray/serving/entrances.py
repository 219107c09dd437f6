"""Puts the gate into Ray's HTTP entrances. The only file that touches Ray Serve's internals.

Ray starts its proxies itself, from `serve run`, `serve deploy` or an operator, and takes middlewares only from
variables set on every node before that. So a replica puts the gate into the proxies when it is ready, and again with
its health checks, in case one was restarted. If a version of Ray differs inside, one warning says so, and the service
goes on without the gate.
"""

import asyncio
import sys
import time
from dataclasses import replace
from typing import Any

import ray
from ray import serve
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from cirray.core.log import get_logger
from cirray.serving.config import ServeArgs
from cirray.serving.gate import Gate, GateRules, in_flight, open_lane, rules_of
from cirray.serving.problems import MEDIA_TYPE

_LOG = get_logger(__name__)
GUARD_TIMEOUT_S, RESTART_S, GUARDED_FOR_S = 8.0, 6.0, 30.0
SHUT_WITHIN_S = 30.0
QUIET_WITHIN_S, QUIET_LOOK_S, QUIET_LOOKS = 4.0, 0.05, 5
NAMESPACE, _CONTROLLER = "serve", "SERVE_CONTROLLER_ACTOR"
NO_REPLICA = (
    "HTTP/1.1 503 Service Unavailable\r\nContent-Type: {media}\r\nRetry-After: 1\r\nCache-Control: no-store\r\n"
    "Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
)
_BODY = (
    '{"type":"urn:cirray:problem:unavailable","title":"The service is not ready","status":503,'
    '"detail":"No replica could answer. Try again.","request_id":""}'
)
_FULL = (
    '{"type":"urn:cirray:problem:too-many-requests","title":"Too many requests wait","status":429,'
    '"detail":"All replicas are busy. Try again.","request_id":""}'
)
EDITS = {
    "bind :{{ config.metrics_port }}": "bind 127.0.0.1:{{ config.metrics_port }}",
    "bind *:{{ config.stats_port }}": "bind 127.0.0.1:{{ config.stats_port }}",
    "    option log-health-checks\n": "    option log-health-checks\n    option forwardfor\n",
    "    # Servers in this backend\n": (
        "    # Servers in this backend, each with as many whole requests as it has places\n"
        "    option http-buffer-request\n    timeout queue 2s\n    default-server maxconn PLACES\n"
        f"    http-request return status 429 content-type {MEDIA_TYPE} hdr retry-after 1 string '{_FULL}'"
        " if { queue gt PLACES } !{ path /healthz /readyz /version }\n"
    ),
}
"""HAProxy's own pages answer only on loopback, replicas get the client's address, and HAProxy limits requests itself.

What it refuses costs the replica nothing."""


class Entrances:
    """One replica's state of the entrances to its application."""

    def __init__(self, args: ServeArgs) -> None:
        """No entrance has the gate yet."""
        self._args, self._warned, self._guarded_at = args, False, float("-inf")

    async def guard(self) -> None:
        """Put the gate into every proxy of the cluster and this replica's own server (fast path), at intervals."""
        if time.monotonic() - self._guarded_at < GUARDED_FOR_S:
            return
        try:
            async with asyncio.timeout(GUARD_TIMEOUT_S):
                done = await self._guard()
        except Exception as error:  # noqa: BLE001 - whatever Ray's inside has become, the service itself works
            if not self._warned:
                _LOG.warning("Ray's proxies are without the gate (hosts, slow clients, overload): %r", error)
            self._warned = True
        else:
            self._guarded_at = time.monotonic() if done else float("-inf")

    async def _guard(self) -> bool:
        """True when every entrance has the gate."""
        controller = ray.get_actor(_CONTROLLER, namespace=NAMESPACE)
        http = await controller.get_http_config.remote()
        rules, replica = rules_of(self._args, http.host), serve.get_replica_context()
        open_lane("/", replace(rules, entrances=replica.world_size or 1))
        proxies = (await controller.get_proxies.remote()).values()
        shared = replace(rules, entrances=max(1, len(proxies)))
        return all([await proxy.__ray_call__.remote(guard_entrance, replica.app_name, shared) for proxy in proxies])


def listening_host() -> str:
    """Interface of the Serve instance that runs on this cluster; loopback where none runs, or it does not tell."""
    if not ray.is_initialized():
        return "127.0.0.1"
    try:
        controller = ray.get_actor(_CONTROLLER, namespace=NAMESPACE)
        http: Any = ray.get(controller.get_http_config.remote(), timeout=GUARD_TIMEOUT_S)
        return str(http.host)
    except Exception:  # noqa: BLE001 - no instance yet, or Ray's inside has become another
        return "127.0.0.1"


def are_routed(seconds: float) -> bool:
    """Whether every entrance sends requests to the applications that run; waits so long at most."""
    controller = ray.get_actor(_CONTROLLER, namespace=NAMESPACE)
    try:
        found: Any = ray.get(controller.get_proxies.remote(), timeout=GUARD_TIMEOUT_S)
        asked = [proxy.serving.remote() for proxy in found.values()]
        return not asked or not ray.wait(asked, num_returns=len(asked), timeout=seconds)[1]
    except Exception:  # noqa: BLE001 - whatever Ray's inside has become, the application runs
        return True


def wait_until_quiet() -> None:
    """Keep the entrances open until no request is inside or on its way, for `QUIET_WITHIN_S` seconds at most.

    Ray takes an application's routes away when it is told to delete it, also from requests that were sent before and
    not read yet. HAProxy has read them.
    """
    controller = ray.get_actor(_CONTROLLER, namespace=NAMESPACE)
    try:
        found: Any = ray.get(controller.get_proxies.remote(), timeout=GUARD_TIMEOUT_S)
        ray.get([proxy.__ray_call__.remote(quiet_entrance) for proxy in found.values()], timeout=2 * QUIET_WITHIN_S)
    except Exception as error:  # noqa: BLE001 - whatever Ray's inside has become, the service stops
        _LOG.warning("requests that the proxies have not read yet are answered 503: %r", error)


def shut_down() -> None:
    """End Ray Serve.

    Ray's own call waits inside the controller until that kills itself, of which Ray tells as a task that failed.
    """
    until = time.monotonic() + SHUT_WITHIN_S
    try:
        controller = ray.get_actor(_CONTROLLER, namespace=NAMESPACE)
        ray.get(controller.graceful_shutdown.remote(False), timeout=GUARD_TIMEOUT_S)
        while time.monotonic() < until:
            ray.get_actor(_CONTROLLER, namespace=NAMESPACE)
            time.sleep(QUIET_LOOK_S)
    except ValueError:
        return  # there is none
    except Exception as error:  # noqa: BLE001 - whatever Ray's inside has become, the service stops
        _LOG.info("Ray Serve is ended by its own call: %r", error)
    serve.shutdown()


def quiet_entrance(actor: Any) -> None:
    """Runs inside a proxy actor, in a thread; returns when its event loop finds no request for `QUIET_LOOKS` looks."""
    if not hasattr(actor, "_haproxy"):
        asyncio.run_coroutine_threadsafe(quiet(), actor._start_http_server_task.get_loop()).result(2 * QUIET_WITHIN_S)


async def quiet() -> None:
    """Return when no request has been inside a gate of this process for `QUIET_LOOKS` looks, or the time is over."""
    until, looks = time.monotonic() + QUIET_WITHIN_S, 0
    while looks < QUIET_LOOKS and time.monotonic() < until:
        await asyncio.sleep(QUIET_LOOK_S)  # every socket that holds something is read meanwhile
        looks = 0 if in_flight() else looks + 1


def guard_entrance(actor: Any, app: str, rules: GateRules) -> bool:
    """Runs inside a proxy actor, in a thread; true when the gate is in place."""
    if hasattr(actor, "_haproxy"):
        return _guard_haproxy(actor, rules)
    endpoints = actor.proxy_router.endpoints.items()
    prefix = next((info.route for endpoint, info in endpoints if endpoint.app_name == app), None)
    task = actor._start_http_server_task
    if prefix is None or not task.done():
        return False
    open_lane(prefix, rules)
    wrap_server(task.result()[1].config, rules.header_timeout_s)
    return True


def wrap_server(config: Any, header_timeout_s: float) -> None:
    """Put the gate before a running uvicorn server's application, and a deadline on headers; once."""
    outer = config.loaded_app
    if isinstance(outer, ProxyHeadersMiddleware):
        outer.app = outer.app if isinstance(outer.app, Gate) else Gate(outer.app)  # type: ignore[assignment,arg-type]
    elif not isinstance(outer, Gate):
        config.loaded_app = Gate(outer)
    protocol = config.http_protocol_class
    if not hasattr(protocol, "header_timeout_s") and hasattr(protocol, "on_headers_complete"):
        config.http_protocol_class = protocol = with_header_deadline(protocol)
    protocol.header_timeout_s = header_timeout_s


def with_header_deadline(protocol: type) -> type:
    """A uvicorn protocol that closes a connection whose request headers do not arrive in time."""

    class Deadline(protocol):  # type: ignore[misc]
        header_timeout_s = 10.0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._start_clock()

        def connection_lost(self, exc: Exception | None) -> None:
            self._header_clock.cancel()
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            self._header_clock.cancel()
            self._start_clock()
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._header_clock.cancel()
            super().on_headers_complete()

        def _start_clock(self) -> None:
            self._header_clock = self.loop.call_later(self.header_timeout_s, self.transport.close)

    return Deadline


def _guard_haproxy(manager: Any, rules: GateRules) -> bool:
    """HAProxy's settings: own pages on loopback, a deadline for headers, a problem document without a replica."""
    module, config = sys.modules[type(manager._haproxy).__module__], manager._haproxy.cfg
    template: str = module.HAPROXY_CONFIG_TEMPLATE  # type: ignore[attr-defined]
    for old, new in EDITS.items():
        wanted = new.replace("PLACES", str(rules.max_in_flight))
        template = template if wanted in template else template.replace(old, wanted)
    seconds = max(1, round(rules.header_timeout_s))
    if template == module.HAPROXY_CONFIG_TEMPLATE and config.timeout_http_request_s == seconds:  # type: ignore[attr-defined]
        return True
    module.HAPROXY_CONFIG_TEMPLATE = template  # type: ignore[attr-defined]
    config.timeout_http_request_s = seconds
    with open(config.error_file_path, "w", newline="") as file:
        file.write(NO_REPLICA.format(media=MEDIA_TYPE, length=len(_BODY), body=_BODY))
    asyncio.run_coroutine_threadsafe(_restart(manager), manager.event_loop).result(RESTART_S)
    return True


async def _restart(manager: Any) -> None:
    """A restart, not a reload: the new process could not bind 127.0.0.1:8404 while the old one has *:8404.

    A new replica does this before it takes requests, so no request waits for the half second.
    """
    async with manager._reload_lock:
        await manager._haproxy_start_task
        await manager._haproxy.stop()
        await manager._haproxy.start()
