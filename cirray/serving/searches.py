"""The route that answers queries."""

import time
from dataclasses import asdict
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response

from cirray.index.store import GalleryIndex
from cirray.serving.bodies import SearchBody, read_search
from cirray.serving.routes import ServiceGetter, picture_fields, problem_doc
from cirray.serving.schemas import Hit, SearchForm, SearchRequest, SearchResponse, Times
from cirray.serving.service import SearchService
from cirray.types import Ranking, StepTimes


def add_search(app: FastAPI, service: ServiceGetter) -> None:
    """Add `/v1/search`."""
    problems = {status: problem_doc(text) for status, text in _SEARCH_PROBLEMS.items()}

    @app.post("/v1/search", response_model=SearchResponse, responses=problems, openapi_extra=_search_body())
    async def search(request: Request) -> Response:
        """Find gallery images that look like the reference after the change the text asks for."""
        begin, current = time.perf_counter(), service()
        body = await read_search(request)
        query = await current.prepare(partial(_prepare, current, body))
        ranking = await current.answer(query)
        answer = _search_response(request, query.gallery, ranking, begin)
        return Response(answer.model_dump_json(), media_type="application/json")


def _prepare(service: SearchService, body: SearchBody) -> Any:
    fields, settings = body.fields, service.settings
    k = min(fields.k or settings.default_k, settings.max_k)
    return service.retriever.prepare(
        fields.text, body.picture, fields.gallery_id, k, fields.exclude_reference, weight=fields.weight
    )


def _search_response(request: Request, gallery: GalleryIndex, ranking: Ranking, begin: float) -> SearchResponse:
    hits = [
        Hit(id=name, score=score, **picture_fields(request, gallery, name))
        for name, score in zip(ranking.ids, ranking.scores, strict=True)
    ]
    return SearchResponse(
        hits=hits, index_digest=gallery.digest, encoder_digest=gallery.meta.encoder_digest,
        took_ms=round(1000 * (time.perf_counter() - begin), 3), times_ms=_times(ranking),
        request_id=request.state.request_id,
    )  # fmt: skip


def _times(ranking: Ranking) -> Times:
    return Times(**{name: round(value, 3) for name, value in asdict(ranking.times or StepTimes()).items()})


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
