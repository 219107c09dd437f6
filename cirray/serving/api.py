"""The HTTP interface: FastAPI routes over a `SearchService`, with or without Ray Serve around them."""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from cirray.core.errors import CirrayError
from cirray.core.version import __version__
from cirray.serving.config import ServeArgs
from cirray.serving.galleries import add_gallery
from cirray.serving.gate import Gate, Lane, rules_of
from cirray.serving.guard import POLICY, Guard, page_policy
from cirray.serving.keys import KeyCheck, KeyRing
from cirray.serving.named import Services, add_named, chosen_by
from cirray.serving.names import BELOW, DEFAULT, api_of
from cirray.serving.problems import (
    NOT_ALLOWED,
    NOT_FOUND,
    UNAVAILABLE,
    UNUSABLE,
    ProblemError,
    problem_response,
    response_of,
)
from cirray.serving.reference import reference_page
from cirray.serving.remote import Remote
from cirray.serving.routes import ServiceGetter, problem_doc
from cirray.serving.schemas import MAX_QUERIES, Health, Ready, Version
from cirray.serving.searches import add_search
from cirray.serving.service import SearchService
from cirray.serving.writes import add_writes
from cirray.types import MAX_TEXT

_METHODS = ("DELETE", "GET", "HEAD", "POST", "PUT")
_STATIC = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


def make_api(
    service: Callable[[], SearchService], args: ServeArgs, alone: bool = True, galleries: Services = dict
) -> FastAPI:
    """Build the application.

    Args:
        service: gives the service of the gallery `default` at request time (in a replica it is built after the
            application).
        args: limits of bodies.
        alone: False behind Ray Serve, whose entrances have the gate and write X-Request-ID.
        galleries: gives the services of further galleries by name.
    """

    def services() -> dict[str, SearchService]:
        return {DEFAULT: service(), **galleries()}

    app = FastAPI(
        title="cirray", version=__version__, docs_url=None, redoc_url=None, openapi_url="/openapi.json",
        redirect_slashes=False,
    )  # fmt: skip
    routes, chosen = APIRouter(), chosen_by(services)
    limit = int(args.max_body_mb * 2**20)
    remote = Remote(args.image_hosts, limit)
    search = add_search(routes, chosen, remote)
    add_gallery(routes, chosen, args)
    add_writes(routes, chosen, args, remote)
    add_named(app, routes, services, args.compare)
    _add_state(app, services)
    _add_version(app, chosen, args)
    _add_page(app, args)
    _add_errors(app)
    for path in ("/v1/search", f"{BELOW}{{gallery}}/search"):
        _add_direct(app, path, search)
    if args.keys:
        app.add_middleware(KeyCheck, ring=KeyRing(args.keys))
    app.add_middleware(Guard, max_body_bytes=limit, body_timeout_s=args.body_timeout_s, echo_request_id=alone)
    if alone:
        app.add_middleware(Gate, lane=Lane(rules_of(args, "")), ray=False)
    return app


def _add_state(app: FastAPI, services: Services) -> None:
    @app.get("/healthz", response_model=Health)
    async def healthz() -> Health:
        """The process answers."""
        return Health(status="ok")

    @app.get("/readyz", response_model=Ready, responses={503: problem_doc("The model or the index does not work.")})
    async def readyz(request: Request) -> Ready | Response:
        """Model and index of every gallery have just answered a probe. `degraded`: they answer, but a gallery cannot be
        followed or written to, as `faults` say.
        """
        try:
            for service in services().values():
                await service.probe()
        except Exception as error:  # noqa: BLE001 - any failure of the model means "not ready", said in the answer
            detail = str(error) if isinstance(error, CirrayError) else "The model or the index failed its probe."
            return problem_response(UNAVAILABLE, detail, request.state.request_id, {"retry-after": "2"})
        return _ready(services())


def _ready(services: Mapping[str, SearchService]) -> Ready:
    """Whether every gallery is followed. Paths stay in the log."""
    followed = [(name, service.retriever.follower) for name, service in services.items()]
    faults = [f"The gallery {name!r} {source.fault}" for name, source in followed if source and source.fault]
    return Ready(status="degraded" if faults else "ready", faults=faults)


def _add_version(app: FastAPI, service: ServiceGetter, args: ServeArgs) -> None:
    @app.get("/version", response_model=Version)
    async def version(request: Request) -> Version:
        """What is being served, and its limits."""
        return _version(service(request), args)

    @app.get(f"{BELOW}{{gallery}}", response_model=Version, responses={404: problem_doc("No such gallery.")})
    async def version_of(request: Request, gallery: str) -> Version:
        """What is being served as a gallery, and its limits."""
        return _version(service(request), args)


def _version(current: SearchService, args: ServeArgs) -> Version:
    held, settings, composes = current.retriever.gallery, current.settings, current.retriever.composition
    return Version(
        cirray=__version__, index_digest=held.digest, encoder_digest=held.meta.encoder_digest,
        gallery_size=len(held), default_k=settings.default_k, max_k=settings.max_k, max_text=MAX_TEXT,
        max_body_bytes=int(args.max_body_mb * 2**20), max_pixels=args.max_pixels,
        composition=composes.name, compositions=list(composes.choices), weight=composes.weight,
        shapes=list(current.retriever.shapes), columns=held.columns.schema.names, max_queries=MAX_QUERIES,
    )  # fmt: skip


def _add_page(app: FastAPI, args: ServeArgs) -> None:
    folder, policy = Path(__file__).parent / "static", page_policy([api_of(url) for url in args.compare.values()])
    page = (folder / "index.html").read_bytes()
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in _STATIC}

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        headers = {"cache-control": "no-cache", POLICY: policy}
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        text = reference_page(app.openapi(), str(request.base_url).rstrip("/"))
        return Response(text, media_type="text/html; charset=utf-8", headers={"cache-control": "no-cache"})

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        if name not in files:
            raise ProblemError(NOT_FOUND, f"There is no file {name[:80]!r}.")
        return Response(files[name], media_type=_STATIC[Path(name).suffix], headers={"cache-control": "no-cache"})


def _add_direct(app: FastAPI, path: str, answer: Callable[[Request], Awaitable[Response]]) -> None:
    """Answer a documented POST that reads its body itself by a route of Starlette's before FastAPI's own, whose choice
    and handling of a route take longer than all that the application does with a query.
    """
    app.router.routes.insert(0, Route(path, answer, methods=["POST"], include_in_schema=False))


def _methods(app: FastAPI, scope: Scope) -> set[str]:
    """The methods of every route of a path; the router names only those of the first."""
    return {
        method
        for method in _METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in app.routes)
    }


def _add_errors(app: FastAPI) -> None:
    async def answer(request: Request, error: Exception) -> Response:
        reply = response_of(error, request.state.request_id)
        if reply.status_code == NOT_ALLOWED.status:
            reply.headers["allow"] = ", ".join(sorted(_methods(app, request.scope)))
        return reply

    async def invalid(request: Request, error: Exception) -> Response:
        first = error.errors()[0] if isinstance(error, RequestValidationError) else {"loc": (), "msg": str(error)}
        name = ".".join(str(part)[:40] for part in first["loc"][1:])
        return problem_response(UNUSABLE, f"Parameter {name!r}: {first['msg']}.", request.state.request_id)

    app.add_exception_handler(RequestValidationError, invalid)
    for kind in (HTTPException, CirrayError, Exception):
        app.add_exception_handler(kind, answer)
