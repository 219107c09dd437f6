"""Search bodies: JSON or multipart in, checked fields and picture bytes out."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pydantic
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from cirray.core.texts import parse_json
from cirray.data.places import Box
from cirray.queries import Further, Negative, Reference
from cirray.serving.problems import BAD_REQUEST, MEDIA, UNUSABLE, ProblemError
from cirray.serving.remote import Fetches, is_url
from cirray.serving.schemas import MAX_QUERIES, NegativeQuery, PictureQuery, SearchForm, SearchRequest

_MAX_FIELDS = 24
_JSON_FIELDS = ("box", "references", "negative", "exclude", "fields")
"""Fields of a form that are written as JSON."""


@dataclass(frozen=True)
class SearchBody:
    """Fields of a search and the encoded picture, if one was sent."""

    fields: SearchRequest | SearchForm
    file: bytes | None = None
    fetched: Mapping[str, bytes] = field(default_factory=dict)
    """Pictures that were named by URL."""

    @property
    def picture(self) -> bytes | None:
        """The encoded reference, if one was sent or named.

        Raises:
            ProblemError: 422 for one that is not base64.
        """
        return self.file if self.file is not None else self._decoded(self.fields.image, "image")

    async def with_pictures(self, fetches: Fetches) -> "SearchBody":
        """The body with the pictures that it names by URL.

        Raises:
            DataError: for one that cannot be had.
        """
        fields = self.fields
        named = [fields.image, *(item.image for item in fields.references)]
        named += [fields.negative.image] if fields.negative else []
        urls = [image for image in dict.fromkeys(named) if image is not None and is_url(image)]
        return replace(self, fetched={url: await fetches.get(url) for url in urls}) if urls else self

    def further(self) -> Further:
        """What the query says beyond one reference and a text.

        Raises:
            ProblemError: 422 for a picture that is not base64.
        """
        fields = self.fields
        negative = fields.negative
        return Further(
            _box(fields.box),
            tuple(self._reference(item, f"references.{at}") for at, item in enumerate(fields.references)),
            None if negative is None else self._negative(negative), tuple(fields.exclude), fields.offset, fields.filter,
        )  # fmt: skip

    def _reference(self, item: PictureQuery | NegativeQuery, name: str) -> Reference:
        return Reference(self._decoded(item.image, f"{name}.image"), item.gallery_id, _box(item.box), item.weight)

    def _negative(self, item: NegativeQuery) -> Negative:
        shown = item.image is not None or item.gallery_id is not None
        return Negative(item.text, self._reference(item, "negative") if shown else None, item.weight)

    def _decoded(self, image: str | None, name: str) -> bytes | None:
        return _decoded(image, name) if image is None or image not in self.fetched else self.fetched[image]


def _box(box: list[float] | None) -> Box | None:
    return None if box is None else (box[0], box[1], box[2], box[3])


def _decoded(image: str | None, name: str) -> bytes | None:
    try:
        return None if image is None else base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError):
        raise ProblemError(UNUSABLE, f"The field {name!r} is not base64 (standard alphabet, with padding).") from None


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
    return SearchBody(fields)


async def read_batch(request: Request) -> list[SearchBody | ProblemError]:
    """Read the body of a batch: each query, or what is wrong with it.

    Raises:
        ProblemError: 400 for a body that cannot be parsed, 415 for another media type, 422 for one without
            queries, or with too many.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise ProblemError(MEDIA, f"Content-Type {media[:80]!r} is not taken; send application/json.")
    try:
        batch = _Batch.model_validate_json(await request.body())
    except pydantic.ValidationError as error:
        raise fields_problem(error, _Batch) from None
    return [_one_of_batch(item) for item in batch.queries]


def _one_of_batch(item: Any) -> SearchBody | ProblemError:
    try:
        return SearchBody(SearchRequest.model_validate(item))
    except pydantic.ValidationError as error:
        return fields_problem(error, SearchRequest)


class _Batch(pydantic.BaseModel):
    """The outside of a batch, so that a bad query spoils no other one."""

    model_config = pydantic.ConfigDict(extra="forbid")
    queries: list[Any] = pydantic.Field(min_length=1, max_length=MAX_QUERIES)


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
            values[name] = _json_value(name, value) if name in _JSON_FIELDS else value
    if "image" in values:
        raise ProblemError(UNUSABLE, "The field 'image' must be a file part (with a filename), not text.")
    try:
        return SearchBody(SearchForm.model_validate(values), picture)
    except pydantic.ValidationError as error:
        raise fields_problem(error, SearchRequest) from None


def _json_value(name: str, text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        raise ProblemError(UNUSABLE, f"The field {name!r} is not valid JSON.") from None


def fields_problem(error: pydantic.ValidationError, model: type[pydantic.BaseModel]) -> ProblemError:
    """The first error of a body's fields as a problem; `model` has the known ones."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = ".".join(str(part)[:40] for part in first["loc"])
    if first["type"] == "json_invalid":
        return ProblemError(BAD_REQUEST, f"The body is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}.")
    if first["type"] == "extra_forbidden":
        known = f" Known: {', '.join(model.model_fields)}." if len(first["loc"]) == 1 else ""
        return ProblemError(UNUSABLE, f"Unknown field {name!r}.{known}")
    return ProblemError(UNUSABLE, f"Field {name!r}: {first['msg']}." if name else f"{first['msg']}.")
