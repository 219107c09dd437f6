"""Configuration of the service: what is loaded (arguments) and how it answers (settings, changed without a restart)."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from cirray.core.config import Config
from cirray.core.environ import artifact_root
from cirray.core.errors import ConfigError
from cirray.core.fields import Effort, Place
from cirray.core.places import ROOT, Run
from cirray.generators.rerankers.config import RerankChoice
from cirray.serving.names import DEFAULT

OWN_CLUSTER = {
    "RAY_worker_niceness": "0",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "100",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.3",
}
"""Variables of a cluster that only serves: no niceness, one event loop a process, since nothing here blocks it, and a
proxy that is missed after a second (Ray starts another one once three looks have failed)."""
FAST_PATH: dict[str, str] = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "cirray.serving.gate:middlewares",
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_RETRIES": "3",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "131072",
    "RAY_SERVE_HAPROXY_MAXCONN": "2048",
    "RAY_SERVE_HAPROXY_NBTHREAD": "2",
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "30",
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "10",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "100",
}
"""Variables of Serve's fast path, set before Ray starts; `serve_configs/fastpath.env` says the same for a shell."""
HAPROXY = "RAY_SERVE_HAPROXY_BINARY_PATH"
"""A further one: the program that Ray starts as HAProxy, `cirray-haproxy`."""
HAPROXY_PORTS = {"RAY_SERVE_HAPROXY_STATS_PORT": "8404", "RAY_SERVE_HAPROXY_METRICS_PORT": "9101"}
"""Further ports of the fast path and the variables that move them."""


def _named(given: Mapping[str, str]) -> Mapping[str, str]:
    """Names that paths and keys can say."""
    for name in given:
        if name == DEFAULT or not re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            raise ValueError(
                f"{name[:80]!r} is no name of a further gallery or service; letters, digits, '.', '_' and '-' are, 64 "
                f"at most, and {DEFAULT!r} is the one at `index`"
            )
    return given


Galleries = Annotated[dict[str, Place], AfterValidator(_named)]


def _services(given: Mapping[str, str]) -> Mapping[str, str]:
    """Addresses that a page can ask and its content policy can name."""
    for name, url in _named(given).items():
        if not re.fullmatch(r"https?://[A-Za-z0-9.\[\]:-]+(/[A-Za-z0-9._~%/-]*)?", url):
            raise ValueError(
                f"{name}: {url[:80]!r} is no address of a service; https://search.example.org is, or one of its "
                "galleries: https://search.example.org/v1/galleries/NAME"
            )
    return given


Services = Annotated[dict[str, str], AfterValidator(_services)]


class ServeArgs(Run):
    """Arguments of `cirray.serving.app:build_app`: the `args` section of a Serve config file."""

    checkpoint: Place = "@checkpoint"
    """Checkpoint artifact: model and its vision tower (path or URI)."""
    index: Place = "@index"
    """Index artifact built with that checkpoint (path or URI)."""
    galleries: Galleries = {}
    """Further galleries of the service by name: `{archive: @archive, shop: @galleries/shop.json}`, each an index, a
    gallery or what `cirray gallery use` names, queried by the checkpoint that it was made with. The one at `index` is
    named `default`."""
    device: Effort[str] = "cpu"
    """Where the models run: cpu, cuda, cuda:1, ..."""
    rerank: RerankChoice | None = None
    """Score the first answers of every query again (`matching`, `lmm`): better answers, later."""
    threads: Effort[int] = Field(1, ge=1)
    """Threads of one replica's matrix products; give the replica as many CPUs."""
    max_body_mb: Effort[float] = Field(10.0, gt=0, le=512)
    """Largest request body in MiB; a longer one is answered 413 while it is still arriving."""
    max_pixels: Effort[int] = Field(25_000_000, ge=1)
    """Largest reference image, width times height (decoding takes about 6 bytes a pixel)."""
    body_timeout_s: Effort[float] = Field(20.0, gt=0)
    """Seconds a client has to send its body before it is answered 408."""
    header_timeout_s: Effort[float] = Field(10.0, gt=0)
    """Seconds a connection has to send the headers of a request before it is closed."""
    slow_per_client: Effort[int] = Field(16, ge=0)
    """Most bodies of one client that take longer than a second at a time; further ones are answered 408."""
    max_held_mb: Effort[float] = Field(64.0, gt=0)
    """Most MiB of bodies in memory at a time, arriving or being answered; what exceeds it is answered 503."""
    max_in_flight: Effort[int] = Field(96, ge=1)
    """Most requests that are being answered at a time by one proxy (one replica on the fast path); more get 429."""
    allowed_hosts: Effort[tuple[str, ...] | None] = None
    """Names a Host header may say (`*.example.org`: any below); null: loopback's where only loopback is listened on."""
    keys: Place = ""
    """File of keys that `cirray keys` writes, where every node sees it; empty: nobody needs a key."""
    open: Effort[bool] = False
    """Listen beyond loopback although nobody needs a key."""
    origins: Effort[tuple[str, ...]] = ()
    """Other sites whose pages may ask (CORS), such as https://shop.example.org; `*`: any."""
    compare: Effort[Services] = {}
    """Other services whose answers the search page may show beside its own, by name: `{new: https://new.example.org}`;
    each has this site among its `origins`."""
    access_log: Effort[Place] = ""
    """File that gets one line of JSON a request, each node its own; empty: no log."""
    image_hosts: Effort[tuple[str, ...]] = ()
    """Hosts whose pictures a request may name by URL: `img.example.org`, `*.example.org` (any below), `*` (any), each
    perhaps with `:PORT`; only at public addresses. Empty: no URLs."""
    writes: Effort[bool] = False
    """Let images be added and removed over HTTP, where a gallery that is written to is served (`cirray gallery`)."""
    load_from: Effort[tuple[str, ...]] = ()
    """Folders and URIs (`/data/vectors`, `s3://bucket/vectors`) below which a request may name a Parquet file to be
    added; empty: none."""
    kept_references: Effort[int] = Field(64, ge=0)
    """Latest reference images whose encoding is kept for further texts about them; 0: each query encodes its own."""
    originals: Effort[bool] = True
    """Show a gallery picture large from its original file, while that is still the one that was indexed and has at most
    `max_pixels`; else, and with false, large pictures are the index's thumbnails."""
    verify: Effort[bool] = True
    """Compare the index files with their digests at the start (reads every byte once)."""
    shards: Effort[int] = Field(1, ge=1, le=256)
    """Searchers that hold each gallery together, in processes of their own (deployments `Searcher1`, `Searcher2`, ...);
    1: each replica holds all of it."""
    partial: Effort[bool] = False
    """When a searcher is away, answer from the others and say which share was searched; false: 503."""
    searcher_timeout_s: Effort[float] = Field(5.0, gt=0)
    """Seconds a searcher has to answer; then it is away until it answers again."""

    @model_validator(mode="after")
    def _told_apart(self) -> "ServeArgs":
        both = sorted({*self.compare} & {*self.galleries})
        if both:
            raise ValueError(f"{both[0]!r} is named in `galleries` and in `compare`; the page needs a name for each")
        return self


class FileArgs(ServeArgs):
    """The arguments as Ray reads them from a Serve config file: CIRRAY_ROOT, where it is set, over the file's root."""

    @model_validator(mode="before")
    @classmethod
    def _moved(cls, tree: Any) -> Any:
        root = artifact_root()
        return {**tree, ROOT: root} if root and isinstance(tree, Mapping) else tree


class ServingSettings(Config):
    """`user_config` of the deployment: Serve hands changes to running replicas."""

    default_k: int = Field(12, ge=1)
    """Answers when a request does not say."""
    max_k: int = Field(100, ge=1, le=10_000)
    """Most answers of one request."""
    max_batch_size: Effort[int] = Field(32, ge=1)
    """Most queries in one pass through the model; a free model takes what waits, and waits for nothing."""

    @model_validator(mode="after")
    def _default_fits(self) -> "ServingSettings":
        if self.default_k > self.max_k:
            raise ValueError(f"default_k {self.default_k} must not exceed max_k {self.max_k}")
        return self


class ServeRun(Run):
    """Serve a retriever over HTTP on this machine or on the cluster that `RAY_ADDRESS` names."""

    checkpoint: Place = "@checkpoint"
    """Checkpoint artifact. Where none is named: the one that the index was made with."""
    index: Place = "@index"
    """Index artifact. Where none is named: the last one that `cirray index` made below `root`."""
    galleries: Galleries = {}
    """Further galleries by name: `--galleries.archive @archive`; each answers below `/v1/galleries/NAME`. What is at
    `index` is named `default`."""
    host: Effort[str] = "127.0.0.1"
    """Network interface; 0.0.0.0 opens the service to the network, for which it needs `keys`, or `open`."""
    port: Effort[int] = Field(8000, ge=1, le=65535)
    """Port of the service."""
    device: Effort[str] = "cpu"
    """Where the models run."""
    rerank: RerankChoice | None = None
    """Score the first answers of every query again (`matching`, `lmm`): better answers, later."""
    allowed_hosts: Effort[tuple[str, ...] | None] = None
    """Names that a Host header may say; null: those of loopback where `host` is loopback."""
    keys: Place = ""
    """File of keys that `cirray keys` writes; empty: nobody needs a key, and `host` is loopback."""
    open: Effort[bool] = False
    """Listen beyond loopback although nobody needs a key."""
    origins: Effort[tuple[str, ...]] = ()
    """Other sites whose pages may ask (CORS), such as https://shop.example.org; `*`: any."""
    compare: Effort[Services] = {}
    """Other services that the search page may show beside this one: `--compare.new https://new.example.org`."""
    access_log: Effort[Place] = ""
    """File that gets one line of JSON a request; empty: no log."""
    image_hosts: Effort[tuple[str, ...]] = ()
    """Hosts whose pictures a request may name by URL, such as img.example.org or `*.example.org`; empty: no URLs."""
    writes: Effort[bool] = False
    """Let images be added and removed over HTTP, where a gallery that is written to is served (`cirray gallery`)."""
    load_from: Effort[tuple[str, ...]] = ()
    """Folders and URIs below which a request may name a Parquet file to be added; empty: none."""
    replicas: Effort[int] = Field(1, ge=1)
    """Processes that answer. The next request goes to the one with the least to do."""
    shards: Effort[int] = Field(1, ge=1, le=256)
    """Searchers that hold each gallery together, for one that is too large for a process; 1: each replica holds it."""
    partial: Effort[bool] = False
    """When a searcher is away, answer from the others and say which share was searched; false: 503."""
    fast: Effort[bool] = False
    """Serve's fast path (HAProxy, Linux): about twice the requests a second."""
    file: Place = ""
    """Serve config file, e.g. serve_configs/retriever.yaml, for all fields that are not given; empty: these fields."""


def is_loopback(host: str) -> bool:
    """Whether an interface is reached from this machine only."""
    return host in ("localhost", "::1") or host.startswith("127.")


def check_open(args: ServeArgs, host: str) -> None:
    """Refuse to open a service to the network by mistake.

    Raises:
        ConfigError: `host` is no loopback, and there are neither keys nor `open`.
    """
    if not (is_loopback(host) or args.keys or args.open):
        raise ConfigError(
            f"host {host} opens the service to the network, where nobody would need a key. Say keys=FILE (`cirray keys "
            "FILE --add NAME` writes one), or open=true."
        )
