"""What the modules of routes share: the service, the fields of a picture, and problems in the OpenAPI document."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from fastapi import Request

from cirray.index.protocol import Shown
from cirray.index.store import GalleryIndex
from cirray.serving.names import BELOW
from cirray.serving.schemas import Problem
from cirray.serving.service import SearchService

ServiceGetter = Callable[[Request], SearchService]
"""Gives the service of a request: in a replica it is built after the application."""


def images_below(request: Request, gallery: GalleryIndex) -> str | None:
    """What the paths of a gallery's pictures begin with, below the service's prefix; None when the index keeps none."""
    if not gallery.keeps_pictures:
        return None
    name = request.path_params.get("gallery")
    base = "/v1/" if name is None else f"{BELOW}{_quoted(name)}/"
    return f"{request.scope.get('root_path', '').rstrip('/')}{base}images/"


@lru_cache(maxsize=16_384)
def _quoted(image_id: str) -> str:
    """An id in a path; kept, since quoting the ids of twelve hits takes as long as parsing their query."""
    return quote(image_id, safe="")


def image_path(below: str | None, image_id: str) -> str | None:
    """Path of an image's picture, below what `images_below` says."""
    return None if below is None else f"{below}{_quoted(image_id)}"


def picture_fields(below: str | None, image_id: str, shown: Shown) -> dict[str, Any]:
    """Fields of an image's picture: its path, as `image_path`, and its size."""
    width, height = shown.size or (None, None)
    return {"image": image_path(below, image_id), "width": width, "height": height}


def problem_doc(text: str) -> dict[str, Any]:
    """A problem document among the answers of a route."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": text, "model": Problem, "content": {"application/problem+json": {"schema": schema}}}
