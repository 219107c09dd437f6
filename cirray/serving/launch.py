"""`cirray serve`: the same application as `serve run serve_configs/retriever.yaml`, with flags instead of a file."""

import time

from ray import serve

from cirray.core.environ import private_cluster, ray_address
from cirray.core.log import get_logger
from cirray.runs import ServeRun
from cirray.serving.app import build_app
from cirray.serving.config import ServeArgs


def run_serve(run: ServeRun, wait: bool = True) -> None:
    """Start the service and stay until interrupted.

    Args:
        run: what to serve, and where.
        wait: False returns as soon as the service answers.

    Raises:
        ArtifactError: the checkpoint or the index is missing.
        IndexMismatchError: they do not belong together.
    """
    application = build_app(ServeArgs(checkpoint=run.checkpoint, index=run.index, device=run.device))
    if not ray_address():
        private_cluster()
    serve.start(http_options={"host": run.host, "port": run.port})
    serve.run(application, name="retriever", route_prefix="/")
    get_logger(__name__).info("http://%s:%d answers; Ctrl-C stops it", run.host, run.port)
    while wait:
        time.sleep(1.0)
