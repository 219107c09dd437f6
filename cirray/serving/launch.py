"""`cirray serve`: the same application as `serve run serve_configs/retriever.yaml`, with flags instead of a file."""

import signal
import socket
import threading

from ray import serve

from cirray.core.environ import private_cluster, ray_address
from cirray.core.errors import ConfigError
from cirray.core.log import get_logger
from cirray.retriever import ComposedRetriever
from cirray.runs import ServeRun
from cirray.serving.app import build_app
from cirray.serving.config import ServeArgs

_LOG = get_logger(__name__)


def run_serve(run: ServeRun, wait: bool = True) -> None:
    """Start the service and stay until interrupted.

    Args:
        run: what to serve, and where.
        wait: False returns as soon as the service answers.

    Raises:
        ArtifactError: the checkpoint or the index is missing or damaged.
        IndexMismatchError: they do not belong together.
        ConfigError: the port is taken.
    """
    ComposedRetriever.open(run.checkpoint, run.index).probe()
    application = build_app(ServeArgs(checkpoint=run.checkpoint, index=run.index, device=run.device))
    if not ray_address():
        check_port(run.host, run.port)
        private_cluster()
    serve.start(http_options={"host": run.host, "port": run.port})
    serve.run(application, name="cirray", route_prefix="/")
    _LOG.info("http://%s:%d answers; Ctrl-C stops it", run.host, run.port)
    if wait:
        wait_for_signal()
        serve.shutdown()
        _LOG.info("stopped")


def wait_for_signal() -> None:
    """Return at Ctrl-C or SIGTERM (containers, systemd), also where a shell started this process without Ctrl-C."""
    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    while not stop.wait(1.0):
        pass


def check_port(host: str, port: int) -> None:
    """Refuse a port that something else listens on, before anything is started.

    Raises:
        ConfigError: naming the address.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"The service cannot listen on {host}:{port}: {error.strerror}. Choose another port."
            ) from None
