"""Places as LanceDB names them (pyarrow's URIs say endpoint and region in a query, LanceDB in options), and what their
stores refuse.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa

from cirray.core import storage
from cirray.core.environ import set_default, store_patience_s
from cirray.core.errors import StoreError, reason_of
from cirray.core.extras import require

_QUICK = {"client_max_retries": "3", "client_retry_timeout": "10", "request_timeout": "10s", "connect_timeout": "3s"}
_STABLE = {"new_table_enable_stable_row_ids": "true"}


def lance_place(uri: str, patient: bool = False) -> tuple[str, dict[str, str]]:
    """Path or URI without a query, and the storage options it stood for.

    A store that is away is an error after some seconds, not minutes; to the `patient` as to every stage.
    """
    if storage.is_local(uri):
        return str(storage.local_path(uri).absolute()), {}
    parts = urlsplit(uri)
    asked = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    options = dict(_QUICK)
    if patient:
        options |= {"client_max_retries": "20", "client_retry_timeout": str(math.ceil(store_patience_s()))}
    if endpoint := asked.get("endpoint_override"):
        scheme = asked.get("scheme", "https")
        options |= {"aws_endpoint": endpoint if "://" in endpoint else f"{scheme}://{endpoint}"}
        options |= {"allow_http": "true"} if options["aws_endpoint"].startswith("http://") else {}
    if region := asked.get("region"):
        options["aws_region"] = region
    if parts.username:
        options["aws_access_key_id"] = unquote(parts.username)
        options["aws_secret_access_key"] = unquote(parts.password or "")
    return f"{parts.scheme}://{parts.hostname}{parts.path}", options


def connected(uri: str, patient: bool) -> Any:
    """LanceDB's connection to a place; rows of tables that it makes keep their numbers.

    Raises:
        ConfigError: without LanceDB.
        StoreError: the store cannot be read.
    """
    require("lancedb", "gallery", "A gallery that is written to")
    require("lance", "gallery", "A gallery that is written to")
    set_default("LANCE_LOG", "error")  # that another process merged the same files first is no news to anybody
    import lancedb

    place, options = lance_place(uri, patient)
    with told(uri, "read"):
        return lancedb.connect(place, storage_options={**_STABLE, **options})


@contextmanager
def told(uri: str, what: str) -> Iterator[None]:
    """Errors of the store as one sentence."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, pa.ArrowException) as error:
        raise unread(uri, error, what) from None


def unread(uri: str, error: BaseException, what: str) -> StoreError:
    """The error of a gallery that cannot be read, or written."""
    return StoreError(f"The gallery {uri!r} cannot be {what} now: {reason_of(error)}.")


def is_gone(error: BaseException) -> bool:
    """Whether the store answers, and there is no table."""
    return "Not found" in str(error) and "/_versions" in str(error)
