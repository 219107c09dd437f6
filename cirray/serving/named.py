"""Several galleries by name in one service: what stands below `/v1` also stands below `/v1/galleries/NAME`."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Path, Request

from cirray.core.errors import unknown_name
from cirray.serving.names import BELOW, DEFAULT, LIST, api_of
from cirray.serving.problems import NOT_FOUND, ProblemError
from cirray.serving.routes import ServiceGetter, problem_doc
from cirray.serving.schemas import Galleries, ServedGallery
from cirray.serving.service import SearchService

Services = Callable[[], Mapping[str, SearchService]]
"""Gives the services of all galleries by name at request time; `DEFAULT` is among them."""


def chosen_by(services: Services) -> ServiceGetter:
    """Gives the service of the gallery that a request's path names.

    The getter raises ProblemError (404) for an unknown one, with the known.
    """

    def choose(request: Request) -> SearchService:
        name, known = request.path_params.get("gallery", DEFAULT), services()
        if name not in known:
            raise ProblemError(NOT_FOUND, unknown_name("gallery", name[:80], list(known)))
        return known[name]

    return choose


def add_named(app: FastAPI, routes: APIRouter, services: Services, others: Mapping[str, str]) -> None:
    """Add the routes of a gallery below `/v1` and below `/v1/galleries/NAME`, and the list of the galleries, with other
    services by name.
    """

    async def named(gallery: Annotated[str, Path(description="Name of a gallery.")]) -> None:
        """Documents the name; `chosen_by` reads it."""

    app.include_router(routes, prefix="/v1")

    @app.get(LIST, response_model=Galleries)
    async def galleries(request: Request) -> Galleries:
        """The galleries of this service that the caller's key may ask. What stands below `/v1` answers for each below
        `/v1/galleries/NAME`, and for the one named `default` without a name.
        """
        allowed = request.scope.get("state", {}).get("galleries", ())
        return Galleries(
            galleries=[
                ServedGallery(name=name, images=len(service.retriever.gallery), writable=service.writer is not None)
                for name, service in services().items()
                if not allowed or name in allowed
            ],
            compare={name: api_of(url) for name, url in others.items()},
        )

    unknown: dict[int | str, Any] = {404: problem_doc("There is no gallery of that name, or no such image.")}
    app.include_router(routes, prefix=f"{BELOW}{{gallery}}", dependencies=[Depends(named)], responses=unknown)
