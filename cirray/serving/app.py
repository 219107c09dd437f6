"""`serve run serve_configs/retriever.yaml` imports `build_app` from here.

No postponed annotations in this module: Serve reads the type of `args` to validate them.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from click import ClickException
from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.exceptions import RayServeException

from cirray.core.artifacts import read_manifest
from cirray.core.errors import CirrayError
from cirray.index.store import check_encoder, read_searchable
from cirray.index.uses import use_of
from cirray.serving.api import make_api
from cirray.serving.config import FileArgs, ServeArgs, check_open
from cirray.serving.deployments import SearchReplica, current_services
from cirray.serving.entrances import listening_host
from cirray.serving.keys import read_keys
from cirray.serving.metrics import add_metrics
from cirray.serving.names import DEFAULT, each
from cirray.serving.searchers import searchers_of

DEPLOYMENT_OPTIONS: dict[str, Any] = {
    "name": "Retriever",
    "max_ongoing_requests": 96,
    "max_queued_requests": 256,
    "backpressure_config": {"status_code": 429, "retry_after_s": 1},
    "max_constructor_retry_count": 2,
    "health_check_period_s": 10,
    "health_check_timeout_s": 30,
    "graceful_shutdown_timeout_s": 8,
    "graceful_shutdown_wait_loop_s": 0.5,
    "ray_actor_options": {"num_cpus": 1},
}
"""Three batches of 32 in flight (see docs/SERVING.md); a config file overrides them."""


class NotServableError(RayServeException, ClickException):
    """Artifacts that cannot be served; Ray prints the sentence once.

    Any other exception in a builder is retried three times, each with a traceback.
    """


def build_app(args: FileArgs) -> Application:
    """Build the Serve application.

    Args:
        args: the `args` of the config file, or `key=value` after `serve run cirray.serving.app:build_app`.

    Raises:
        NotServableError: an artifact is missing, half-written or of another kind, another encoder built the index, the
            file of keys is missing, or the network would need no key.
    """
    try:
        check_open(args, listening_host())
        if args.keys:
            read_keys(Path(args.keys).expanduser())
        for own in each(args).values():
            use = use_of(own.index, own.checkpoint)
            check_pair(use.checkpoint, use.index)
    except CirrayError as error:
        raise NotServableError(str(error)) from None

    return application_of(args)


def application_of(args: ServeArgs, searchers: Mapping[str, Any] = MappingProxyType({}), **options: Any) -> Application:
    """The application, unchecked; `options` of the deployment over `DEPLOYMENT_OPTIONS`, of `searchers` by name."""

    def replica_api() -> FastAPI:
        app = make_api(lambda: current_services()[DEFAULT], args, alone=False, galleries=current_services)
        add_metrics(app)
        return app

    replica = serve.ingress(replica_api)(SearchReplica)
    retriever = serve.deployment(**{**DEPLOYMENT_OPTIONS, **options})(replica)
    return retriever.bind(args, searchers_of(args, searchers)) if args.shards > 1 else retriever.bind(args)


def check_pair(checkpoint: str, index: str) -> None:
    """Refuse artifacts that cannot be served together, before any replica starts (Ray would restart it again and
    again).

    Raises:
        ArtifactError: one of them is missing, half-written or of another kind.
        IndexMismatchError: the index was built by another encoder.
    """
    encoder, gallery = read_manifest(checkpoint, "checkpoint"), read_searchable(index)
    if gallery.inputs.get("checkpoint") != encoder.digest:
        from cirray.image_text import load_models

        model, vision, _ = load_models(checkpoint)
        towers = (str(gallery.extra.get("vision_digest", "")), vision.digest)
        check_encoder(str(gallery.extra.get("encoder_digest", "")), model.index_digests, index, towers)
