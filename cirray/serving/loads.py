"""Which places a request may have the service read: those below the places that its configuration names."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from cirray.core import storage
from cirray.serving.problems import FORBIDDEN, UNUSABLE, ProblemError


def readable(uri: str, rules: tuple[str, ...]) -> str:
    """The place that a request names, as the service reads it: links followed, with the rule's own way to a store.

    Raises:
        ProblemError: 403 for one that is below no rule, whether it is there or not; 422 for one that is no file.
    """
    if not rules:
        raise ProblemError(FORBIDDEN, "Files by URI are off; the service takes those below a place of its load_from.")
    find = _below_folder if storage.is_local(uri) else _below_uri
    place = next((found for rule in rules if (found := find(uri, rule))), "")
    if not place:
        raise ProblemError(FORBIDDEN, f"{uri[:200]!r} is not below a place that this service may read (load_from).")
    if storage.is_local(place) and not Path(place).is_file():
        raise ProblemError(UNUSABLE, f"There is no file {uri[:200]!r}.")
    return place


def _below_folder(uri: str, rule: str) -> str:
    if not storage.is_local(rule):
        return ""
    try:
        path = Path(uri.removeprefix("file://"))
        found, folder = path.resolve(), storage.local_path(rule).resolve()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, links in a circle
        return ""
    return str(found) if path.is_absolute() and found != folder and found.is_relative_to(folder) else ""


def _below_uri(uri: str, rule: str) -> str:
    """The URI by the rule's account, endpoint and query; a request names none of these."""
    if storage.is_local(rule):
        return ""
    try:
        asked, own = urlsplit(uri), urlsplit(rule)
    except ValueError:
        return ""
    parts, folder = unquote(asked.path).split("/")[1:], own.path.rstrip("/").split("/")[1:]
    plain = not asked.query and not asked.fragment and "@" not in asked.netloc and "\0" not in asked.path
    same = asked.scheme == own.scheme and asked.netloc == own.netloc.rpartition("@")[2]
    below = parts[: len(folder)] == folder and len(parts) > len(folder) and not {"", ".", ".."} & set(parts)
    return own._replace(path=asked.path).geturl() if plain and same and below else ""
