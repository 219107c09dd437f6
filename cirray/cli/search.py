"""`cirray search`: one query, answered here or by a service that is running."""

from typing import Any

from cirray.core.config import given
from cirray.core.errors import ConfigError, ServingError


def run(search: Any) -> Any:
    """Answer one query.

    Raises ConfigError for a checkpoint or index beside the address of a service, and DataError, IndexMismatchError or
    ServingError as `run_search`, or what the service says.
    """
    if search.url:
        return _ask_service(search)
    if search.gallery:
        raise ConfigError("gallery= names one of a service's galleries: give its url= too, or index= to search here.")
    from cirray.pipelines.search.search import run_search

    return run_search(search)


def _ask_service(search: Any) -> Any:
    """The same answer and page by a service, without torch."""
    from concurrent.futures import ThreadPoolExecutor

    from cirray.pipelines.search.search import answer, further, reference
    from cirray.serving.client import SearchClient

    named = [name for name in ("checkpoint", "index") if given(search, name)]
    if named:
        raise ConfigError(f"The service at {search.url!r} has its own {' and '.join(named)}; leave out {named[0]}=.")
    image, gallery_id = reference(search)
    with SearchClient(search.url, gallery=search.gallery) as client, ThreadPoolExecutor(8) as pool:
        gallery_id = _as_the_gallery(client, gallery_id) if gallery_id else None
        found = client.search(
            search.text or None, image, gallery_id, search.k, weight=search.weight, further=further(search),
            fields=search.fields,
        )  # fmt: skip
        pictures = lambda names: pool.map(client.image, names)  # noqa: E731
        return answer(search, found.ranking, pictures, image, gallery_id, found.metadata)


def _as_the_gallery(client: Any, typed: str) -> str:
    """The id of a gallery image that was typed, maybe with its folder or suffix; as typed where there is none."""
    from cirray.data.names import spellings

    for spelling in spellings(typed):
        try:
            client.image(spelling)
        except ServingError as error:
            if "answered 404" not in str(error):
                raise
        else:
            return spelling
    return typed
