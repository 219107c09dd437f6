"""Routes that change the gallery: one image, or many at once. An answer comes when the change is durable."""

import asyncio
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Request

from cirray.catalogue.change import Change
from cirray.core.errors import DataError
from cirray.serving.config import ServeArgs
from cirray.serving.loads import readable
from cirray.serving.problems import FORBIDDEN, FROZEN, UNUSABLE, ProblemError
from cirray.serving.remote import Fetches, Remote
from cirray.serving.routes import ServiceGetter, problem_doc
from cirray.serving.schemas import ImageForm, ImageLine, Loaded, LoadRequest, Written
from cirray.serving.write_bodies import FORM, LINES, Put, read_load, read_many, read_put
from cirray.serving.writer import GalleryWriter

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_PROBLEMS: dict[int | str, str] = {
    400: "The body cannot be parsed.",
    403: "Writes are off, or the request comes from another site's page.",
    409: "The service searches a frozen index.",
    413: "The body is too large.",
    415: "The body is of a kind that is not taken.",
    422: "The picture, the id or the metadata cannot be used; nothing was written.",
    503: "The gallery's store cannot be written now; try again after Retry-After seconds.",
}


def add_writes(routes: APIRouter, service: ServiceGetter, args: ServeArgs, remote: Remote) -> None:
    """Add PUT and DELETE of `/images/ID`, and `POST /images`."""
    problems = {status: problem_doc(text) for status, text in _PROBLEMS.items()}
    whole = {"image/*": _BINARY, FORM: {"schema": ImageForm.model_json_schema()}}
    many = {LINES: {"schema": ImageLine.model_json_schema()}, FORM: _BINARY}

    @routes.put("/images/{image_id:anything}", response_model=Written, responses=problems, openapi_extra=_body(whole))
    async def put(request: Request, image_id: str) -> Written:
        """Add an image, or replace the one of that id. Every replica shows it within two seconds."""
        writer = _writer(request, service, args)
        return await _written(request, writer, [await read_put(request, image_id)], remote.request())

    @routes.delete("/images/{image_id:anything}", response_model=Written, responses=problems)
    async def delete(request: Request, image_id: str) -> Written:
        """Remove an image; one that is not there is no error."""
        writer = _writer(request, service, args)
        return await _written(request, writer, [Put(image_id, None, {})], remote.request())

    @routes.post("/images", response_model=Written, responses=problems, openapi_extra=_body(many))
    async def post(request: Request) -> Written:
        """Add, replace or remove many images: a line of JSON each, or files whose names are the ids."""
        writer = _writer(request, service, args)
        return await _written(request, writer, await read_many(request, writer.shape), remote.request())

    loads = {"application/json": {"schema": LoadRequest.model_json_schema()}}

    @routes.post("/images:load", response_model=Loaded, responses=problems, openapi_extra=_body(loads))
    async def load(request: Request) -> Loaded:
        """Add rows of a Parquet file that the service reads itself. What was written before a row that cannot be kept
        stays; rows that are added again replace themselves.
        """
        writer, asked = _writer(request, service, args), await read_load(request)
        place = readable(asked.uri, args.load_from)
        written, total, version = await writer.load(place, asked.offset, asked.limit)
        end = asked.offset + written
        return Loaded(
            written=written, total=total, next=end if end < total else None, version=version,
            request_id=request.state.request_id,
        )  # fmt: skip


def _body(content: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": content}}


def _writer(request: Request, service: ServiceGetter, args: ServeArgs) -> GalleryWriter:
    """What writes, if this request may.

    Raises:
        ProblemError: 403 or 409.
    """
    current = service(request)
    if not current.retriever.living:
        raise ProblemError(
            FROZEN, "This service searches a frozen index; `cirray gallery` makes one that is written to."
        )
    if not args.writes or current.writer is None:
        raise ProblemError(FORBIDDEN, "Writes are off; the service is started with writes=true to take them.")
    origin = request.headers.get("origin", "")
    same = urlsplit(origin).netloc == request.headers.get("host", "")
    if origin and not same and origin not in args.origins and "*" not in args.origins:
        raise ProblemError(FORBIDDEN, f"A page of {origin[:80]!r} may not write here.")
    return current.writer


async def _written(request: Request, writer: GalleryWriter, puts: Sequence[Put], fetches: Fetches) -> Written:
    changes = await asyncio.gather(*(_change(writer, put, fetches) for put in puts), return_exceptions=True)
    made = list[Change]()
    for put, change in zip(puts, changes, strict=True):
        if isinstance(change, DataError) and len(puts) > 1:
            raise ProblemError(UNUSABLE, f"Image {put.id[:80]!r}: {change} Nothing was written.")
        if isinstance(change, BaseException):
            raise change
        made.append(change)
    version = await writer.write(made)
    removed = sum(change.tokens_QD is None for change in made)
    return Written(
        written=len(made) - removed, removed=removed, version=version, request_id=request.state.request_id
    )  # fmt: skip


async def _change(writer: GalleryWriter, put: Put, fetches: Fetches) -> Change:
    data = await fetches.get(put.url) if put.url else put.data
    if data is not None:
        return await writer.picture(put.id, data, put.metadata)
    change = Change(put.id, put.tokens_QD, metadata=put.metadata)
    writer.check(change)
    return change
