"""Which files an index was made of: whole local files whose contents are known."""

import os
from collections.abc import Mapping, Sequence

from cirray.core import storage
from cirray.data.places import Place
from cirray.index.originals import Original


def originals_of(
    ids: Sequence[str], places: Mapping[str, str], contents: Mapping[str, str], folder: str = ""
) -> tuple[str, list[Original]]:
    """Folder above all files (the nearest one, where none is given), and their names below it with their digests, by
    row.

    Parts of a file, crops, files behind a URI, and files whose contents were not read have none.
    """
    files = [_file(places.get(name, "")) if contents.get(name) else "" for name in ids]
    folders = {os.path.dirname(path) for path in files if path}
    if not folders:
        return "", []
    root = folder or os.path.commonpath(folders)
    rows = [
        (os.path.relpath(path, root), contents[name]) if path else ("", "")
        for name, path in zip(ids, files, strict=True)
    ]
    return root, rows


def _file(text: str) -> str:
    """Absolute path of a whole local file, else empty."""
    place = Place.parse(text)
    if not place.uri or place.span or place.box or not storage.is_local(place.uri):
        return ""
    return os.path.abspath(storage.local_path(place.uri))
