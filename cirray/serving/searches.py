"""The routes that answer queries: one, or a batch."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from cirray.index.protocol import Absent, Shown
from cirray.index.store import GalleryIndex
from cirray.serving.bodies import SearchBody, read_batch, read_search
from cirray.serving.problems import ProblemError, problem_of
from cirray.serving.remote import Fetches, Remote
from cirray.serving.routes import ServiceGetter, images_below, picture_fields, problem_doc
from cirray.serving.schemas import (
    BatchAnswer,
    BatchRequest,
    BatchResponse,
    Hit,
    SearchForm,
    SearchRequest,
    SearchResponse,
    Times,
)
from cirray.serving.service import SearchService
from cirray.types import Ranking, StepTimes

if TYPE_CHECKING:
    from cirray.queries import ComposedQuery


SEARCHED = "x-cirray-searched"
"""Header of answers that come from a part of the gallery: its share."""


def add_search(routes: APIRouter, service: ServiceGetter, remote: Remote) -> Callable[[Request], Awaitable[Response]]:
    """Add `/search` and `/search:batch`; returns what answers the former."""
    problems = {status: problem_doc(text) for status, text in _SEARCH_PROBLEMS.items()}

    @routes.post("/search", response_model=SearchResponse, responses=problems, openapi_extra=_search_body())
    async def search(request: Request) -> Response:
        """Find gallery images that look like the reference after the change the text asks for."""
        begin, current = time.perf_counter(), service(request)
        body = await (await read_search(request)).with_pictures(remote.request())
        answer = await _answered(request, current, body, begin)
        return _json(answer, answer.searched)

    batch_problems = {status: text for status, text in problems.items() if status != 404}

    @routes.post("/search:batch", response_model=BatchResponse, responses=batch_problems, openapi_extra=_batch_body())
    async def search_batch(request: Request) -> Response:
        """Answer several queries; each has its own answer or problem."""
        begin, current = time.perf_counter(), service(request)
        asked, fetches = await read_batch(request), remote.request()
        found = await asyncio.gather(*(_one(request, current, body, fetches, begin) for body in asked))
        answer = BatchResponse(answers=found, request_id=request.state.request_id)
        return _json(answer, min((item.answer.searched for item in found if item.answer), default=1.0))

    return search


async def _one(
    request: Request, service: SearchService, body: SearchBody | ProblemError, fetches: Fetches, begin: float
) -> BatchAnswer:
    """The answer of one query of a batch, or its problem."""
    try:
        if isinstance(body, ProblemError):
            raise body
        whole = await body.with_pictures(fetches)
        return BatchAnswer(answer=await _answered(request, service, whole, begin), problem=None)
    except Exception as error:  # noqa: BLE001 - said in the answer, as the application does for a single search
        return BatchAnswer(answer=None, problem=problem_of(error, request.state.request_id))


async def _answered(request: Request, service: SearchService, body: SearchBody, begin: float) -> SearchResponse:
    make = partial(_prepare, service, body)
    query, gallery, names = make() if _is_quick(service, body) else await service.prepare(make)
    ranking = await service.answer(query)
    return _search_response(request, gallery, ranking, await service.shown(gallery, ranking.ids, names), begin)


def _is_quick(service: SearchService, body: SearchBody) -> bool:
    """Whether a query is prepared sooner than another thread is reached: nothing is decoded, filtered or looked up."""
    fields, gallery = body.fields, service.retriever.gallery
    if (
        gallery.is_remote
        or body.file
        or fields.image
        or fields.references
        or fields.negative
        or fields.box
        or fields.filter
        or fields.exclude
    ):
        return False
    return fields.gallery_id is None or gallery.keeps_patches


def _prepare(service: SearchService, body: SearchBody) -> "tuple[ComposedQuery, GalleryIndex, list[str]]":
    """The query, the gallery that it searches, and the columns that its answers are to have."""
    fields, settings = body.fields, service.settings
    k = min(fields.k or settings.default_k, settings.max_k)
    query = service.retriever.prepare(
        fields.text, body.picture, fields.gallery_id, k, fields.exclude_reference, weight=fields.weight,
        further=body.further(),
    )  # fmt: skip
    gallery = query.gallery or service.retriever.gallery
    return query, gallery, gallery.columns.chosen(fields.fields)


def _search_response(
    request: Request, gallery: GalleryIndex, ranking: Ranking, shown: Sequence[Shown | Absent], begin: float
) -> SearchResponse:
    """The answers, without images that were removed meanwhile, or whose searcher died: then less was searched."""
    searched = min([ranking.searched, *(item.share for item in shown if isinstance(item, Absent))])
    below = images_below(request, gallery)
    hits = [
        Hit(id=name, score=score, metadata=dict(item.values), **picture_fields(below, name, item))
        for name, score, item in zip(ranking.ids, ranking.scores, shown, strict=True)
        if isinstance(item, Shown)
    ]
    return SearchResponse(
        hits=hits, index_digest=gallery.digest, encoder_digest=gallery.meta.encoder_digest,
        took_ms=round(1000 * (time.perf_counter() - begin), 3), times_ms=_times(ranking),
        searched=round(searched, 6), request_id=request.state.request_id,
    )  # fmt: skip


def _json(answer: BaseModel, searched: float) -> Response:
    """An answer; a header says so where not all of the gallery was searched."""
    headers = {SEARCHED: f"{searched:g}"} if searched < 1 else None
    return Response(answer.model_dump_json(), media_type="application/json", headers=headers)


def _times(ranking: Ranking) -> Times:
    times = ranking.times or StepTimes()
    return Times(**{name: round(getattr(times, name), 3) for name in Times.model_fields})


def _search_body() -> dict[str, Any]:
    form = {"multipart/form-data": {"schema": _schema(SearchForm)}}
    return {"requestBody": {"required": True, "content": {**_json_content(SearchRequest), **form}}}


def _batch_body() -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": _json_content(BatchRequest)}}


def _json_content(kind: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": _schema(kind)}}


def _schema(kind: type[BaseModel]) -> dict[str, Any]:
    """A body's schema whole in its place, since the document knows the schemas of answers alone."""
    tree = kind.model_json_schema()
    return _inlined({name: value for name, value in tree.items() if name != "$defs"}, tree.get("$defs", {}))


def _inlined(tree: Any, parts: dict[str, Any]) -> Any:
    if isinstance(tree, list):
        return [_inlined(item, parts) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "$ref" in tree:
        return _inlined(parts[tree["$ref"].rpartition("/")[2]], parts)
    return {name: _inlined(value, parts) for name, value in tree.items()}


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
