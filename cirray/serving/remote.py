"""Pictures that a request names by URL: fetched from allowed hosts, at public addresses, within limits.

A host's name is resolved here and the connection goes to an address that was checked, so that a name which resolves to
another address a moment later leads nowhere else. Every redirect is checked as the URL was.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import SplitResult, urljoin, urlsplit

import httpx

from cirray.core.errors import DataError

TIMEOUT_S = 10.0
"""For a picture, with its redirects."""
MAX_REDIRECTS = 3
MAX_PICTURES = 64
"""Most pictures by URL of one request."""
AT_ONCE = 8
_PORTS = {"http": 80, "https": 443}
_WRAPPED = [ipaddress.ip_network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")]
"""IPv6 addresses that stand for an IPv4 address, perhaps a private one."""

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]


def is_url(image: str | None) -> bool:
    """Whether a field of a request is a URL, not base64 (which has no colon)."""
    return image is not None and image.lower().startswith(("http://", "https://"))


def is_public(address: str) -> bool:
    """Whether an address is one of the public internet: not private, loopback, link-local, shared or reserved."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _WRAPPED)


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host's name."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(item[4][0]) for item in found]


class Remote:
    """Fetches pictures for the requests of a service."""

    def __init__(
        self, hosts: Sequence[str], max_bytes: int, resolver: Resolver = resolve,
        public: Callable[[str], bool] = is_public, transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:  # fmt: skip
        """Allow some hosts.

        Args:
            hosts: names, `*.example.org` for any below, `*` for any, each perhaps with `:PORT`; none: all are refused.
            max_bytes: of the pictures of one request together.
            resolver: gives the addresses of a name.
            public: whether an address may be connected to.
            transport: what connects.
        """
        self._hosts, self.max_bytes = [host.lower() for host in hosts], max_bytes
        self._resolve, self._public, self._transport = resolver, public, transport
        self._places = asyncio.Semaphore(AT_ONCE)

    def request(self) -> "Fetches":
        """The pictures of one request."""
        return Fetches(self)

    async def fetch(self, url: str, most: int) -> bytes:
        """The body at a URL.

        Raises:
            DataError: for a host that is not allowed, an address that is not public, an answer that is no picture's,
                more than `most` bytes or too much time.
        """
        if not self._hosts:
            raise DataError("Pictures by URL are off; the service is started with image_hosts=[HOST] to take them.")
        name = (urlsplit(url).hostname or "")[:80]
        try:
            async with self._places, asyncio.timeout(TIMEOUT_S):
                for _ in range(MAX_REDIRECTS + 1):
                    found = await self._hop(url, most)
                    if isinstance(found, bytes):
                        return found
                    url = urljoin(url, found)
        except TimeoutError:
            raise DataError(f"The picture at {name!r} has not come within {TIMEOUT_S:g} s.") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError):
            raise DataError(f"The picture at {name!r} cannot be fetched.") from None
        raise DataError(f"The picture at {name!r} is redirected more than {MAX_REDIRECTS} times.")

    async def _hop(self, url: str, most: int) -> bytes | str:
        """The body, or where an answer leads to."""
        parts, host, port = self._checked(url)
        addresses = await self._resolve(host, port)
        if not addresses or not all(self._public(address) for address in addresses):
            raise DataError(f"The host {host[:80]!r} has an address that is not public; its pictures are not fetched.")
        literal = f"[{addresses[0]}]" if ":" in addresses[0] else addresses[0]
        there = parts._replace(netloc=f"{literal}:{port}", fragment="").geturl()
        named = parts.netloc if port != _PORTS[parts.scheme] else host
        headers = {"host": named, "accept": "image/*", "accept-encoding": "identity"}
        async with (
            httpx.AsyncClient(transport=self._transport, trust_env=False, timeout=TIMEOUT_S) as client,
            client.stream("GET", there, headers=headers, extensions={"sni_hostname": host}) as reply,
        ):
            if reply.is_redirect:
                return str(reply.headers.get("location", ""))
            if reply.status_code != 200:
                raise DataError(f"The host {host[:80]!r} answered {reply.status_code} for the picture.")
            return await _body(reply, host, most)

    def _checked(self, url: str) -> tuple[SplitResult, str, int]:
        """The parts of a URL that may be asked, its host and port.

        Raises:
            DataError: for one that may not.
        """
        try:
            parts = urlsplit(url)
            host, given = (parts.hostname or "").lower().rstrip("."), parts.port
        except ValueError:
            raise DataError(f"{url[:80]!r} is no URL.") from None
        if parts.scheme not in _PORTS or not host or "@" in parts.netloc or any(ord(char) <= 32 for char in url):
            raise DataError(f"{url[:80]!r} is no URL of a picture; http://HOST/PATH or https://HOST/PATH is one.")
        port = given or _PORTS[parts.scheme]
        if not any(_allows(rule, host, port, port == _PORTS[parts.scheme]) for rule in self._hosts):
            raise DataError(f"Pictures of the host {host[:80]!r} are not taken; it is not among image_hosts.")
        return parts, host, port


class Fetches:
    """The pictures of one request, which share its limits."""

    def __init__(self, remote: Remote) -> None:
        """Begin with all of what is allowed."""
        self._remote, self._left, self._pictures = remote, remote.max_bytes, 0

    async def get(self, url: str) -> bytes:
        """The picture at a URL.

        Raises:
            DataError: as `Remote.fetch`, and for more pictures than one request may name.
        """
        self._pictures += 1
        if self._pictures > MAX_PICTURES:
            raise DataError(f"The request names more than {MAX_PICTURES} pictures by URL; send them in several.")
        data = await self._remote.fetch(url, self._left)
        self._left -= len(data)
        if self._left < 0:
            raise DataError(_too_large(self._remote.max_bytes))
        return data


def _allows(rule: str, host: str, port: int, usual: bool) -> bool:
    name, colon, number = rule.rpartition(":") if rule.rpartition(":")[2].isdigit() else (rule, "", "")
    if not (usual if not colon else int(number) == port):
        return False
    return name == "*" or host == name or (name.startswith("*.") and host.endswith(name[1:]))


async def _body(reply: httpx.Response, host: str, most: int) -> bytes:
    announced = reply.headers.get("content-length", "")
    data = bytearray()
    if not (announced.isdigit() and int(announced) > most):
        async for chunk in reply.aiter_raw():
            data += chunk
            if len(data) > most:
                break
        else:
            return bytes(data)
    raise DataError(_too_large(most, host))


def _too_large(most: int, host: str = "") -> str:
    place = f" at {host[:80]!r}" if host else "s by URL"
    return f"The picture{place} would take more than the {most / 2**20:.3g} MiB that a request may."
