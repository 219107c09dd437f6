"""The HTTP interface: FastAPI routes over a `SearchService`, with or without Ray Serve around them."""

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.responses import Response

from cirray.core.errors import CirrayError
from cirray.core.version import __version__
from cirray.index.pictures import media_type
from cirray.serving.bodies import SearchBody, read_search
from cirray.serving.config import ServeArgs
from cirray.serving.gate import Gate, Lane, rules_of
from cirray.serving.guard import Guard
from cirray.serving.previews import large_picture
from cirray.serving.problems import NOT_FOUND, UNAVAILABLE, UNUSABLE, ProblemError, problem_response, response_of
from cirray.serving.reference import reference_page
from cirray.serving.schemas import (
    ExampleQuery,
    Examples,
    GalleryItem,
    GalleryPage,
    Health,
    Hit,
    Problem,
    SearchForm,
    SearchRequest,
    SearchResponse,
    Times,
    Version,
)
from cirray.serving.service import SearchService
from cirray.types import MAX_TEXT, Ranking, StepTimes

ServiceGetter = Callable[[], SearchService]
_STATIC = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_MAX_PAGE = 500


class _Anything(PathConvertor):
    """The rest of a path, line breaks included (Starlette's own `path` ends at one)."""

    regex = r"[\s\S]*"


register_url_convertor("anything", _Anything())


def make_api(service: ServiceGetter, args: ServeArgs, alone: bool = True) -> FastAPI:
    """Build the application.

    Args:
        service: gives the service at request time (in a replica it is built after the application).
        args: limits of bodies.
        alone: False behind Ray Serve, whose entrances have the gate and write X-Request-ID.
    """
    app = FastAPI(title="cirray", version=__version__, docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    _add_search(app, service)
    _add_gallery(app, service)
    _add_images(app, service, args)
    _add_examples(app, service)
    _add_state(app, service, args)
    _add_page(app)
    _add_errors(app)
    limit = int(args.max_body_mb * 2**20)
    app.add_middleware(Guard, max_body_bytes=limit, body_timeout_s=args.body_timeout_s, echo_request_id=alone)
    if alone:
        app.add_middleware(Gate, lane=Lane(rules_of(args, "")), ray=False)
    return app


def _add_search(app: FastAPI, service: ServiceGetter) -> None:
    problems = {status: _problem_doc(text) for status, text in _SEARCH_PROBLEMS.items()}

    @app.post("/v1/search", response_model=SearchResponse, responses=problems, openapi_extra=_search_body())
    async def search(request: Request) -> Response:
        """Find gallery images that look like the reference after the change the text asks for."""
        begin, current = time.perf_counter(), service()
        body = await read_search(request)
        query = await current.prepare(partial(_prepare, current, body))
        ranking = await current.answer(query)
        answer = _search_response(request, current, ranking, begin)
        return Response(answer.model_dump_json(), media_type="application/json")


def _prepare(service: SearchService, body: SearchBody) -> Any:
    fields, settings = body.fields, service.settings
    k = min(fields.k or settings.default_k, settings.max_k)
    return service.retriever.prepare(
        fields.text, body.picture, fields.gallery_id, k, fields.exclude_reference, weight=fields.weight
    )


def _search_response(request: Request, service: SearchService, ranking: Ranking, begin: float) -> SearchResponse:
    gallery = service.retriever.gallery
    hits = [
        Hit(id=name, score=score, **_picture(request, service, name))
        for name, score in zip(ranking.ids, ranking.scores, strict=True)
    ]
    return SearchResponse(
        hits=hits, index_digest=gallery.digest, encoder_digest=gallery.meta.encoder_digest,
        took_ms=round(1000 * (time.perf_counter() - begin), 3), times_ms=_times(ranking),
        request_id=request.state.request_id,
    )  # fmt: skip


def _times(ranking: Ranking) -> Times:
    return Times(**{name: round(value, 3) for name, value in asdict(ranking.times or StepTimes()).items()})


def _add_gallery(app: FastAPI, service: ServiceGetter) -> None:
    @app.get("/v1/gallery", response_model=GalleryPage, responses={422: _problem_doc("Limit or offset out of range.")})
    async def gallery(
        request: Request, limit: Annotated[int, Query(ge=1, le=_MAX_PAGE)] = 60, offset: Annotated[int, Query(ge=0)] = 0
    ) -> GalleryPage:
        """List gallery images in id order."""
        current = service()
        ids = current.retriever.gallery.ids
        items = [GalleryItem(id=name, **_picture(request, current, name)) for name in ids[offset : offset + limit]]
        return GalleryPage(items=items, total=len(ids), offset=offset, limit=limit)


def _add_images(app: FastAPI, service: ServiceGetter, args: ServeArgs) -> None:
    documents = {
        200: {"content": {"image/png": {}, "image/jpeg": {}}},
        404: _problem_doc("No such image."),
        422: _problem_doc("No such size."),
    }

    @app.get("/v1/images/{image_id:anything}", response_class=Response, responses=documents)  # type: ignore[arg-type]
    async def image(request: Request, image_id: str, size: Literal["small", "large"] = "small") -> Response:
        """Picture of one gallery image: `small` (the index's thumbnail) or `large` (from its file, where that is)."""
        current = service()
        held = current.retriever.gallery
        tag = f'"{held.tag(image_id)}-{size}"'
        headers = {"etag": tag, "cache-control": "private, max-age=300"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        if size == "large" and args.originals:
            picture = await current.prepare(partial(large_picture, held, image_id, current.retriever.limits))
        else:
            picture = held.picture(image_id)
        if not picture:
            raise ProblemError(NOT_FOUND, f"The index keeps no picture of {image_id[:80]!r}.")
        return Response(picture, media_type=media_type(picture), headers=headers)


def _add_examples(app: FastAPI, service: ServiceGetter) -> None:
    @app.get("/v1/examples", response_model=Examples, responses={404: _problem_doc("The gallery has no such image.")})
    async def examples(request: Request, gallery_id: str | None = None) -> Examples:
        """Queries to try: some that are answered well, or the data set's own texts about one gallery image."""
        current = service()
        gallery = current.retriever.gallery
        if gallery_id is not None:
            gallery.row(gallery_id)
        asked = gallery.examples if gallery_id is None else [(gallery_id, t) for t in gallery.texts.get(gallery_id, ())]
        queries = [
            ExampleQuery(gallery_id=name, text=text, image=_image_path(request, current, name)) for name, text in asked
        ]
        return Examples(queries=queries)


def _add_state(app: FastAPI, service: ServiceGetter, args: ServeArgs) -> None:
    @app.get("/healthz", response_model=Health)
    async def healthz() -> Health:
        """The process answers."""
        return Health(status="ok")

    @app.get("/readyz", response_model=Health, responses={503: _problem_doc("The model or the index does not work.")})
    async def readyz(request: Request) -> Health | Response:
        """The model and the index have just answered a probe."""
        try:
            await service().probe()
        except Exception as error:  # noqa: BLE001 - any failure of the model means "not ready", said in the answer
            detail = str(error) if isinstance(error, CirrayError) else "The model or the index failed its probe."
            return problem_response(UNAVAILABLE, detail, request.state.request_id, {"retry-after": "2"})
        return Health(status="ready")

    @app.get("/version", response_model=Version)
    async def version() -> Version:
        """What is being served, and its limits."""
        current = service()
        gallery, settings, composes = current.retriever.gallery, current.settings, current.retriever.composition
        return Version(
            cirray=__version__, index_digest=gallery.digest, encoder_digest=gallery.meta.encoder_digest,
            gallery_size=len(gallery), default_k=settings.default_k, max_k=settings.max_k, max_text=MAX_TEXT,
            max_body_bytes=int(args.max_body_mb * 2**20), max_pixels=args.max_pixels,
            composition=composes.name, compositions=list(composes.choices), weight=composes.weight,
        )  # fmt: skip


def _add_page(app: FastAPI) -> None:
    folder = Path(__file__).parent / "static"
    page = (folder / "index.html").read_bytes()
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in _STATIC}

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return Response(page, media_type="text/html; charset=utf-8", headers={"cache-control": "no-cache"})

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        text = reference_page(app.openapi(), str(request.base_url).rstrip("/"))
        return Response(text, media_type="text/html; charset=utf-8", headers={"cache-control": "no-cache"})

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        if name not in files:
            raise ProblemError(NOT_FOUND, f"There is no file {name[:80]!r}.")
        return Response(files[name], media_type=_STATIC[Path(name).suffix], headers={"cache-control": "no-cache"})


def _add_errors(app: FastAPI) -> None:
    async def answer(request: Request, error: Exception) -> Response:
        return response_of(error, request.state.request_id)

    async def invalid(request: Request, error: Exception) -> Response:
        first = error.errors()[0] if isinstance(error, RequestValidationError) else {"loc": (), "msg": str(error)}
        name = ".".join(str(part)[:40] for part in first["loc"][1:])
        return problem_response(UNUSABLE, f"Parameter {name!r}: {first['msg']}.", request.state.request_id)

    app.add_exception_handler(RequestValidationError, invalid)
    for kind in (HTTPException, CirrayError, Exception):
        app.add_exception_handler(kind, answer)


def _image_path(request: Request, service: SearchService, image_id: str) -> str | None:
    if service.retriever.gallery.pictures is None:
        return None
    return f"{request.scope.get('root_path', '').rstrip('/')}/v1/images/{quote(image_id, safe='')}"


def _picture(request: Request, service: SearchService, image_id: str) -> dict[str, Any]:
    """Fields of an image's picture: its path and size."""
    gallery = service.retriever.gallery
    width, height = (gallery.pictures and gallery.pictures.size(gallery.row(image_id))) or (None, None)
    return {"image": _image_path(request, service, image_id), "width": width, "height": height}


def _problem_doc(text: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": text, "model": Problem, "content": {"application/problem+json": {"schema": schema}}}


def _search_body() -> dict[str, Any]:
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": SearchRequest.model_json_schema()},
                "multipart/form-data": {"schema": SearchForm.model_json_schema()},
            },
        }
    }


_SEARCH_PROBLEMS: dict[int | str, str] = {
    400: "The body cannot be parsed.",
    404: "The gallery has no such image.",
    408: "The body took too long to arrive.",
    413: "The body is too large.",
    415: "Neither JSON nor multipart.",
    421: "The Host header names another site.",
    422: "The image, the text or another field cannot be used.",
    429: "Too many requests wait; try again after Retry-After seconds.",
    503: "No replica can answer now; try again after Retry-After seconds.",
}
