"""Places as LanceDB names them: pyarrow's URIs say endpoint and region in a query, LanceDB in options."""

from urllib.parse import parse_qs, unquote, urlsplit

from cirray.core import storage

_QUICK = {"client_max_retries": "3", "client_retry_timeout": "10", "request_timeout": "10s", "connect_timeout": "3s"}


def lance_place(uri: str) -> tuple[str, dict[str, str]]:
    """Path or URI without a query, and the storage options it stood for.

    A store that is away is an error after some seconds, not minutes.
    """
    if storage.is_local(uri):
        return str(storage.local_path(uri).absolute()), {}
    parts = urlsplit(uri)
    asked = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    options = dict(_QUICK)
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
