"""Errors as RFC 9457 problem documents."""

from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from cirray.core.errors import AwayError, CirrayError, DataError, StoreError
from cirray.core.log import get_logger
from cirray.index.store import UnknownImageError
from cirray.serving.schemas import Problem

MEDIA_TYPE = "application/problem+json"
_LOG = get_logger(__name__)
_STORE = (
    "The gallery's store cannot be written or read now (a full or read-only disk, or a store that is away; the log "
    "says which). Searches go on; the request may be repeated."
)


@dataclass(frozen=True)
class Kind:
    """Name (part of the `type` URN), title and status of one kind of problem."""

    name: str
    title: str
    status: int


BAD_REQUEST = Kind("bad-request", "The request cannot be read", 400)
NO_KEY = Kind("no-key", "A key is needed", 401)
FORBIDDEN = Kind("forbidden", "The key may not do this", 403)
NOT_FOUND = Kind("not-found", "Nothing is here", 404)
UNKNOWN_IMAGE = Kind("unknown-image", "The gallery has no such image", 404)
NOT_ALLOWED = Kind("method-not-allowed", "The method is not offered here", 405)
TOO_SLOW = Kind("body-timeout", "The body took too long to arrive", 408)
FROZEN = Kind("frozen-index", "The gallery cannot be written to", 409)
TOO_LARGE = Kind("body-too-large", "The body is too large", 413)
MEDIA = Kind("unsupported-media-type", "The body is of a kind that is not taken", 415)
BAD_HOST = Kind("wrong-host", "The request is for another site", 421)
UNUSABLE = Kind("unusable-query", "The query cannot be used", 422)
BUSY = Kind("too-many-requests", "Too many requests wait", 429)
RATE = Kind("rate-exceeded", "The key's rate is used up", 429)
INTERNAL = Kind("internal", "The server failed", 500)
UNAVAILABLE = Kind("unavailable", "The service is not ready", 503)
_BY_STATUS = {kind.status: kind for kind in (BAD_REQUEST, NOT_FOUND, NOT_ALLOWED, TOO_SLOW, TOO_LARGE, MEDIA, UNUSABLE)}


class ProblemError(HTTPException):
    """Raise to answer with a problem document."""

    def __init__(self, kind: Kind, detail: str, headers: dict[str, str] | None = None) -> None:
        """Keep the kind beside the status and the detail."""
        super().__init__(kind.status, detail, headers)
        self.kind = kind


def problem_response(kind: Kind, detail: str, request_id: str, headers: dict[str, str] | None = None) -> Response:
    """The HTTP answer of a problem."""
    return JSONResponse(_document(kind, detail, request_id).model_dump(), kind.status, headers, MEDIA_TYPE)


def response_of(error: BaseException, request_id: str) -> Response:
    """The HTTP answer of any error; only this package's errors show their message."""
    problem = problem_of(error, request_id)
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else None
    headers = {"retry-after": "2"} if isinstance(error, StoreError) else headers
    return JSONResponse(problem.model_dump(), problem.status, headers, MEDIA_TYPE)


def problem_of(error: BaseException, request_id: str) -> Problem:
    """Any error as a problem document."""
    if isinstance(error, ProblemError):
        return _document(error.kind, error.detail, request_id)
    if isinstance(error, HTTPException):
        kind = _BY_STATUS.get(error.status_code) or Kind("http", "The request failed", error.status_code)
        return _document(kind, str(error.detail), request_id)
    if isinstance(error, UnknownImageError):
        return _document(UNKNOWN_IMAGE, str(error), request_id)
    if isinstance(error, DataError):
        return _document(UNUSABLE, str(error), request_id)
    if isinstance(error, StoreError):
        _LOG.warning("request %s: %s", request_id, error)
        return _document(UNAVAILABLE, str(error) if isinstance(error, AwayError) else _STORE, request_id)
    _LOG.error("request %s failed", request_id, exc_info=error)
    detail = (
        str(error) if isinstance(error, CirrayError) else "The request could not be answered; see the server's log."
    )
    return _document(INTERNAL, detail, request_id)


def _document(kind: Kind, detail: str, request_id: str) -> Problem:
    return Problem(
        type=f"urn:cirray:problem:{kind.name}", title=kind.title, status=kind.status, detail=detail,
        request_id=request_id,
    )  # fmt: skip
