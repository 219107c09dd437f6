"""Routes about the gallery: its images in pages, their pictures, and queries to try."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.responses import Response

from cirray.index.pictures import media_type
from cirray.index.protocol import Absent, Page, Shown
from cirray.index.store import GalleryIndex
from cirray.serving.config import ServeArgs
from cirray.serving.previews import LARGE, MEDIUM, large_picture
from cirray.serving.problems import NOT_FOUND, ProblemError
from cirray.serving.routes import ServiceGetter, image_path, images_below, picture_fields, problem_doc
from cirray.serving.schemas import (
    ExampleQuery,
    Examples,
    FacetColumn,
    Facets,
    FacetValue,
    GalleryItem,
    GalleryPage,
)

_MAX_PAGE = 500


class _Anything(PathConvertor):
    """The rest of a path, line breaks included (Starlette's own `path` ends at one)."""

    regex = r"[\s\S]*"


register_url_convertor("anything", _Anything())


def add_gallery(routes: APIRouter, service: ServiceGetter, args: ServeArgs) -> None:
    """Add `/gallery`, `/images`, `/examples` and `/facets`."""
    _add_pages(routes, service)
    _add_images(routes, service, args)
    _add_examples(routes, service)
    _add_facets(routes, service)


def _add_pages(routes: APIRouter, service: ServiceGetter) -> None:
    @routes.get("/gallery", response_model=GalleryPage, responses={422: problem_doc("Limit or offset out of range.")})
    async def gallery(
        request: Request, limit: Annotated[int, Query(ge=1, le=_MAX_PAGE)] = 60, offset: Annotated[int, Query(ge=0)] = 0
    ) -> GalleryPage:
        """List gallery images in id order."""
        current = service(request)
        held = current.retriever.gallery
        page, shown = await current.prepare(partial(_page, held, offset, limit))
        below = images_below(request, held)
        items = [
            GalleryItem(id=name, **picture_fields(below, name, item))
            for name, item in zip(page.ids, shown, strict=True)
            if isinstance(item, Shown)
        ]
        searched = min([page.share, *(item.share for item in shown if isinstance(item, Absent))])
        return GalleryPage(items=items, total=len(held), offset=offset, limit=limit, searched=round(searched, 6))


def _page(gallery: GalleryIndex, offset: int, limit: int) -> tuple[Page, Sequence[Shown | Absent]]:
    page = gallery.page(offset, limit)
    return page, gallery.shown(page.ids)


def _add_images(routes: APIRouter, service: ServiceGetter, args: ServeArgs) -> None:
    documents = {
        200: {"content": {"image/png": {}, "image/jpeg": {}}},
        404: problem_doc("No such image."),
        422: problem_doc("No such size."),
    }

    @routes.get("/images/{image_id:anything}", response_class=Response, responses=documents)  # type: ignore[arg-type]
    async def image(request: Request, image_id: str, size: Literal["small", "medium", "large"] = "small") -> Response:
        """Picture of one gallery image: `small` (the index's thumbnail), or from its file, where that is, `medium` or
        `large` (640 or 1,600 pixels).
        """
        current, has = service(request), request.headers.get("if-none-match")
        held, limits = current.retriever.gallery, current.retriever.limits
        side = 0 if size == "small" or not args.originals else LARGE if size == "large" else MEDIUM

        def make() -> tuple[str, bytes | None]:
            tag = f'"{held.tag(image_id)}-{size}"'
            picture = partial(large_picture, held, image_id, limits, side) if side else partial(held.picture, image_id)
            return tag, None if tag == has else picture()

        tag, picture = await current.prepare(make)
        lasts = "no-cache" if current.retriever.living else "max-age=300"
        headers = {"etag": tag, "cache-control": f"private, {lasts}"}
        if picture is None:
            return Response(status_code=304, headers=headers)
        if not picture:
            raise ProblemError(NOT_FOUND, f"The index keeps no picture of {image_id[:80]!r}.")
        return Response(picture, media_type=media_type(picture), headers=headers)


def _add_examples(routes: APIRouter, service: ServiceGetter) -> None:
    @routes.get("/examples", response_model=Examples, responses={404: problem_doc("The gallery has no such image.")})
    async def examples(request: Request, gallery_id: str | None = None) -> Examples:
        """Queries to try: some that are answered well, or the data set's own texts about one gallery image."""
        current = service(request)
        gallery = current.retriever.gallery
        asked = gallery.examples
        if gallery_id is not None:
            texts = await current.prepare(partial(gallery.texts_of, gallery_id))
            asked = tuple((gallery_id, text) for text in texts)
        below = images_below(request, gallery)
        queries = [ExampleQuery(gallery_id=name, text=text, image=image_path(below, name)) for name, text in asked]
        return Examples(queries=queries)


def _add_facets(routes: APIRouter, service: ServiceGetter) -> None:
    @routes.get("/facets", response_model=Facets, responses={422: problem_doc("A filter that cannot be used.")})
    async def facets(request: Request, filter: str | None = None) -> Facets:
        """What the metadata columns hold, among the images that pass a filter."""
        current = service(request)
        return await current.prepare(partial(_facets, current.retriever.gallery, filter))


def _facets(gallery: GalleryIndex, chosen: str | None) -> Facets:
    images, found, share = gallery.facets(chosen)
    columns = [
        FacetColumn(
            column=facet.column, kind=facet.kind, filled=facet.filled, least=facet.least, most=facet.most,
            values=[FacetValue(value=value, count=count) for value, count in facet.counts],
        )
        for facet in found
    ]  # fmt: skip
    return Facets(images=images, columns=columns, searched=round(share, 6))
