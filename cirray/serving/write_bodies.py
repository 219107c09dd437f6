"""Bodies of writes: a picture as it is, or with metadata in a form; many images as lines of JSON or as files."""

import base64
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydantic
from starlette.datastructures import UploadFile
from starlette.requests import Request

from cirray.core.errors import DataError
from cirray.serving.bodies import fields_problem
from cirray.serving.problems import BAD_REQUEST, MEDIA, UNUSABLE, ProblemError
from cirray.serving.remote import is_url
from cirray.serving.schemas import ImageLine, LoadRequest

MAX_LINES = 10_000
"""Most images of one request."""
FORM, LINES = "multipart/form-data", "application/x-ndjson"


@dataclass(frozen=True)
class Put:
    """One image of a request: a picture's bytes or vectors, or, with neither, a deletion."""

    id: str
    data: bytes | None
    metadata: dict[str, Any]
    tokens_QD: np.ndarray | None = None
    url: str = ""
    """Where its picture is, in place of `data`."""


def media_of(request: Request) -> str:
    """The media type of a body, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_put(request: Request, image_id: str) -> Put:
    """The picture of `PUT /v1/images/ID`.

    Raises:
        ProblemError: 400, 415 or 422 for a body that is none.
    """
    media = media_of(request)
    if media == FORM:
        return await _put_form(request, image_id)
    if not (media.startswith("image/") or media == "application/octet-stream"):
        raise ProblemError(MEDIA, f"Content-Type {media[:80]!r} is not taken; send image/*, or {FORM}.")
    data = await request.body()
    if not data:
        raise ProblemError(UNUSABLE, "The body is empty; send the picture file.")
    return Put(image_id, data, {})


async def _put_form(request: Request, image_id: str) -> Put:
    try:
        async with request.form(max_files=1, max_fields=2) as form:
            values = dict(form.multi_items())
            unknown = next((name for name in values if name not in ("image", "metadata")), None)
            if unknown is not None:
                raise ProblemError(UNUSABLE, f"Unknown field {unknown[:40]!r}. Known: image, metadata.")
            file = values.get("image")
            if isinstance(file, str) and is_url(file):
                return Put(image_id, None, _metadata(values.get("metadata")), url=file)
            if not isinstance(file, UploadFile):
                raise ProblemError(UNUSABLE, "The field 'image' must be a file part (with a filename), or a URL.")
            return Put(image_id, await file.read(), _metadata(values.get("metadata")))
    except (UnicodeError, LookupError, ValueError) as error:
        raise ProblemError(BAD_REQUEST, f"The multipart body cannot be read: {str(error)[:160]}.") from None


def _metadata(text: Any) -> dict[str, Any]:
    try:
        values = json.loads(text) if isinstance(text, str) else {}
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ProblemError(UNUSABLE, "The field 'metadata' is no JSON object such as {\"price\": 2.5}.")
    return values


async def read_load(request: Request) -> LoadRequest:
    """The body of `POST /v1/images:load`.

    Raises:
        ProblemError: 400, 415 or 422 for a body that is none.
    """
    media = media_of(request)
    if media != "application/json":
        raise ProblemError(MEDIA, f"Content-Type {media[:80]!r} is not taken; send application/json.")
    try:
        return LoadRequest.model_validate_json(await request.body())
    except pydantic.ValidationError as error:
        raise fields_problem(error, LoadRequest) from None


async def read_many(request: Request, shape: tuple[int, int]) -> list[Put]:
    """The images of `POST /v1/images`: lines of JSON, or files whose names are the ids.

    Raises:
        ProblemError: 400, 415 or 422, naming the line; nothing of the request is written then.
    """
    media = media_of(request)
    if media == FORM:
        return await _files(request)
    if media != LINES:
        raise ProblemError(MEDIA, f"Content-Type {media[:80]!r} is not taken; send {LINES}, or {FORM}.")
    lines = [(number, line) for number, line in enumerate((await request.body()).split(b"\n"), 1) if line.strip()]
    if not 0 < len(lines) <= MAX_LINES:
        raise ProblemError(UNUSABLE, f"The body has {len(lines):,} lines; 1 to {MAX_LINES:,} are taken.")
    return [_line(number, line, shape) for number, line in lines]


def _line(number: int, line: bytes, shape: tuple[int, int]) -> Put:
    try:
        fields = ImageLine.model_validate_json(line)
        said = [name for name in ("image", "vector") if getattr(fields, name) is not None] + ["delete"] * fields.delete
        if len(said) != 1:
            raise DataError(f"one of image, vector and delete is needed, and there are {len(said)}")
        if fields.image is not None and is_url(fields.image):
            return Put(fields.id, None, fields.metadata, url=fields.image)
        if fields.image is not None:
            return Put(fields.id, base64.b64decode(fields.image, validate=True), fields.metadata)
        if fields.vector is None:
            return Put(fields.id, None, {})
        if len(fields.vector) != shape[0] * shape[1]:
            raise DataError(f"the vector has {len(fields.vector):,} values; {shape[0] * shape[1]:,} are needed")
        return Put(fields.id, None, fields.metadata, np.asarray(fields.vector, np.float32).reshape(shape))
    except pydantic.ValidationError as error:
        problem = fields_problem(error, ImageLine)
        raise ProblemError(problem.kind, f"Line {number:,}: {problem.detail}") from None
    except DataError as error:
        raise ProblemError(UNUSABLE, f"Line {number:,}: {error}.") from None
    except ValueError:  # also of characters beyond ASCII
        raise ProblemError(UNUSABLE, f"Line {number:,}: the field 'image' is not base64 (with padding).") from None


async def _files(request: Request) -> list[Put]:
    try:
        async with request.form(max_files=MAX_LINES, max_fields=0) as form:
            files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            return [Put(file.filename or "", await file.read(), {}) for file in files]
    except (UnicodeError, LookupError, ValueError) as error:
        raise ProblemError(BAD_REQUEST, f"The multipart body cannot be read: {str(error)[:160]}.") from None
