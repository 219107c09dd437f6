"""Search bodies: JSON or multipart in, checked fields and picture bytes out."""

import base64
import binascii
from dataclasses import dataclass
from typing import Any

import pydantic
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from cirray.serving.problems import BAD_REQUEST, MEDIA, UNUSABLE, ProblemError
from cirray.serving.schemas import SearchForm, SearchRequest

_MAX_FIELDS = 8


@dataclass(frozen=True)
class SearchBody:
    """Fields of a search and the encoded picture, if one was sent."""

    fields: SearchRequest | SearchForm
    picture: bytes | None


async def read_search(request: Request) -> SearchBody:
    """Read the body of a search.

    Raises:
        ProblemError: 400 for a body that cannot be parsed, 415 for another media type, 422 for fields that are wrong.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media == "application/json":
        return _from_json(await request.body())
    if media == "multipart/form-data":
        return await _from_form(request)
    raise ProblemError(
        MEDIA, f"Content-Type {media[:80]!r} is not taken; send application/json or multipart/form-data."
    )


def _from_json(body: bytes) -> SearchBody:
    try:
        fields = SearchRequest.model_validate_json(body)
    except pydantic.ValidationError as error:
        raise fields_problem(error, SearchRequest) from None
    if fields.image is None:
        return SearchBody(fields, None)
    try:
        return SearchBody(fields, base64.b64decode(fields.image, validate=True))
    except (binascii.Error, ValueError):
        raise ProblemError(UNUSABLE, "The field 'image' is not base64 (standard alphabet, with padding).") from None


async def _from_form(request: Request) -> SearchBody:
    try:
        async with request.form(max_files=1, max_fields=_MAX_FIELDS) as form:
            return await _form_body(form)
    except (UnicodeError, LookupError, ValueError) as error:
        raise ProblemError(BAD_REQUEST, f"The multipart body cannot be read: {str(error)[:160]}.") from None


async def _form_body(form: FormData) -> SearchBody:
    values: dict[str, Any] = {}
    picture = None
    for name, value in form.multi_items():
        if name in values or (name == "image" and picture is not None):
            raise ProblemError(UNUSABLE, f"The field {name[:40]!r} was sent twice.")
        if isinstance(value, UploadFile):
            if name != "image":
                raise ProblemError(UNUSABLE, f"The file was sent as {name[:40]!r}; the field's name is 'image'.")
            picture = await value.read()
        else:
            values[name] = value
    if "image" in values:
        raise ProblemError(UNUSABLE, "The field 'image' must be a file part (with a filename), not text.")
    try:
        return SearchBody(SearchForm.model_validate(values), picture)
    except pydantic.ValidationError as error:
        raise fields_problem(error, SearchRequest) from None


def fields_problem(error: pydantic.ValidationError, model: type[pydantic.BaseModel]) -> ProblemError:
    """The first error of a body's fields as a problem; `model` has the known ones."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = ".".join(str(part)[:40] for part in first["loc"])
    if first["type"] == "json_invalid":
        return ProblemError(BAD_REQUEST, f"The body is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}.")
    if first["type"] == "extra_forbidden":
        known = ", ".join(model.model_fields)
        return ProblemError(UNUSABLE, f"Unknown field {name!r}. Known: {known}.")
    return ProblemError(UNUSABLE, f"Field {name!r}: {first['msg']}." if name else f"{first['msg']}.")
