"""Find the image that a name means: as written, or else with both sides normalised."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from cirray.core.texts import whole
from cirray.data.kinds import split_suffix

_ABSOLUTE = re.compile(r"/|[A-Za-z]:/|file:/")


def name_key(name: str) -> str:
    """A name normalised for comparison: what keyboards, systems and tables vary is removed.

    That is: Unicode's composition and width (NFC, NFD, full-width), kinds and number of blanks (no-break and narrow
    ones too), blanks and dots at an end, invisible marks (zero-width, variation selectors, directions), `\\` for
    `/`, a leading `./`, and `%20`; bytes that are not UTF-8 become U+FFFD, as in JSON. The case of letters counts.
    """
    text = unquote(name, errors="surrogateescape") if "%" in name else name
    text = unicodedata.normalize("NFKC", whole(text).replace("\\", "/"))
    if not text.isascii():
        text = "".join(char for char in text if unicodedata.category(char) != "Cf" and not _is_selector(char))
    parts = (" ".join(part.split()).rstrip(". ") for part in text.split("/"))
    stem, suffix = split_suffix("/".join(part for part in parts if part))
    return stem.rstrip(". ") + suffix.lower()


def spellings(typed: str) -> list[str]:
    """Ids that a typed file name may mean: as it stands, then without its suffix and its first folders."""
    parts = [part for part in typed.replace("\\", "/").removeprefix("./").split("/") if part]
    tails = ["/".join(parts[start:]) for start in range(len(parts))]
    return list(dict.fromkeys([typed, *(form for tail in tails for form in (tail, split_suffix(tail)[0]))]))


class NameFinder:
    """Finds the id by a name: an id or a file name, with or without its folder, or a path."""

    def __init__(self, names: Mapping[str, str], folders: Sequence[Path] = ()) -> None:
        """Take the images.

        Args:
            names: id -> name of its file (below its folder, with suffix), or the id again where there is none.
            folders: folders whose names or paths may be in front.
        """
        self._names = names
        self._folders = [f"{text}/" for folder in folders for text in (folder.name, folder.as_posix())]
        self._inside = [f"/{folder.name}/" for folder in folders if folder.name]

    def find(self, *written: str) -> tuple[str, ...]:
        """Ids that a name may mean: one, none, or (only when normalised) several. First the name as it stands, then
        further spellings to try.
        """
        texts = [(text, bool(_ABSOLUTE.match(text.replace("\\", "/")))) for text in dict.fromkeys(written)]
        forms = [form for text, far in texts for form in self._forms(text, self._folders, self._inside if far else ())]
        for form in forms:
            if form in self._names:
                return (form,)
            if form in self._files:
                return (self._files[form],)
        near, inside = self._folder_keys
        keys = [form for text, far in texts for form in self._forms(name_key(text), near, inside if far else ())]
        for known, wanted in ((self._by_key, keys), (self._by_stem, [split_suffix(key)[0] for key in keys])):
            found = [image for key in wanted for image in known.get(key, ())]
            if found:
                return tuple(dict.fromkeys(found))
        return ()

    @staticmethod
    def _forms(text: str, folders: Iterable[str], inside: Iterable[str]) -> Iterator[str]:
        """The name without its folder; of another machine's path the part below a folder of that name."""
        yield text
        plain = text.replace("\\", "/").removeprefix("file://").removeprefix("./")
        yield plain
        for folder in folders:
            if plain.startswith(folder):
                yield plain.removeprefix(folder)
        for folder in inside:
            if folder in plain:
                yield plain.rpartition(folder)[2]

    @cached_property
    def _folder_keys(self) -> tuple[list[str], list[str]]:
        return [f"{name_key(folder)}/" for folder in self._folders], [f"/{name_key(name)}/" for name in self._inside]

    @cached_property
    def _files(self) -> dict[str, str]:
        return {name: image for image, name in self._names.items()}

    @cached_property
    def _by_key(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for image, name in self._names.items():
            found[name_key(name)].append(image)
        return dict(found)

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for key, images in self._by_key.items():
            found[split_suffix(key)[0]] += images
        return dict(found)


def _is_selector(char: str) -> bool:
    return "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef"
