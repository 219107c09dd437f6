"""The files of a folder that are, or should be, pictures, and their ids."""

import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from cirray.core.errors import DataError
from cirray.data.benchmark import count_note
from cirray.data.kinds import HEAD_BYTES, is_foreign, is_system_folder, sniff, split_suffix


@dataclass
class Listing:
    """The files below a folder, ordered by path; links are followed.

    `pictures` are names below the folder (text, with `/`) and paths; `aside` are files that are no pictures by name and
    first bytes. Damaged pictures, dangling links and pipes count as pictures: opening them says what is wrong. `closed`
    are folders that could not be listed or lead back to one above them, with the reason.
    """

    folder: str
    pictures: list[tuple[str, str]] = field(default_factory=list)
    aside: list[str] = field(default_factory=list)
    closed: list[tuple[str, str]] = field(default_factory=list)

    def notes(self) -> tuple[str, ...]:
        """Notes on the files that are not pictures."""
        return (
            *count_note("files left out: no pictures by their names", self.aside),
            *(f"the folder {name!r} was left out: {reason}" for name, reason in self.closed),
        )

    def take(self, path: str, name: str) -> None:
        """Sort one path into its list."""
        below = name_text(os.path.relpath(path, self.folder))
        if is_foreign(name) and not (name[:1] not in (".", "~") and sniff(_head(path))):
            self.aside.append(below)
        else:
            self.pictures.append((below, path))


def list_pictures(folder: str | os.PathLike[str]) -> Listing:
    """List a folder; only files whose names say that they are no pictures are opened, for their first bytes."""
    found = Listing(os.fspath(folder))
    _visit(found, found.folder, frozenset())
    return found


def name_text(path: str) -> str:
    """A name below a folder as text: `/` between its parts, and bytes that are not UTF-8 as `%E9`."""
    text = path.replace(os.sep, "/")
    if text.isascii():
        return text
    return "".join(f"%{ord(char) - 0xDC00:02X}" if "\udc80" <= char <= "\udcff" else char for char in text)


def picture_ids(names: Sequence[str]) -> list[str]:
    """Ids of the pictures with these names (with suffix), in their order, all different.

    An id is the name without its picture suffix. Where two pictures would then share one, or one would go by the whole
    name of another (`a.jpg` beside `a.jpg.png`), it is the whole name. So an id depends on which names there are, and
    not on their order.

    Raises DataError when a name appears twice.
    """
    stems = [split_suffix(name)[0] for name in names]
    times, whole = Counter(stems), Counter(names)
    double = next((name for name, count in whole.items() if count > 1), None)
    if double is not None:
        raise DataError(f"Two images are called {double!r}; rename one of them.")
    return [
        name if times[stem] > 1 or (stem != name and stem in whole) else stem
        for name, stem in zip(names, stems, strict=True)
    ]


def _visit(found: Listing, folder: str, above: frozenset[tuple[int, int]]) -> None:
    try:
        place = os.stat(folder)
        here = (place.st_dev, place.st_ino)
        if here in above:
            found.closed.append((_below(found, folder), "it is a link back to a folder above it"))
            return
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        found.closed.append((_below(found, folder), error.strerror or str(error)))
        return
    folders = [entry for entry in ordered if _is_folder(entry)]
    for entry in ordered:
        if not _is_folder(entry):
            found.take(entry.path, entry.name)
    for entry in folders:
        if not is_system_folder(entry.name):
            _visit(found, entry.path, above | {here})


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _below(found: Listing, folder: str) -> str:
    return name_text(os.path.relpath(folder, found.folder))


def _head(path: str) -> bytes:
    """First bytes of a plain file; nothing of anything else (a pipe would wait for ever)."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return b""
        with open(path, "rb") as stream:
            return stream.read(HEAD_BYTES)
    except OSError:
        return b""
