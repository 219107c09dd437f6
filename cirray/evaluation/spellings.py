"""Image ids in other spellings: with folder or suffix, zero-padded, a crop's numbers written differently.

Another spelling is accepted if it means exactly one image, and `note` says so. A name that means none or several is
left as it is, and refused when it is looked up.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from cirray.core.errors import DataError
from cirray.data.benchmark import CirDataset
from cirray.data.genecis import crop_id
from cirray.data.kinds import split_suffix
from cirray.data.names import name_key

_COCO = re.compile(r"COCO_[a-z]+\d{4}_(\d+)")
_NUMBER = r"-?\d+(?:\.\d+)?"
_CROP = re.compile(rf"\D*?(\d+)(?:\.jpe?g)?\D+?({_NUMBER})\D+?({_NUMBER})\D+?({_NUMBER})\D+?({_NUMBER})\D*")


class Spellings:
    """Finds the id that a name means, and counts names that were not ids."""

    def __init__(self, ids: Iterable[str], paths: Mapping[str, str] | None = None, numbers: bool = False) -> None:
        """Ids and their files.

        Args:
            ids: the ids there are.
            paths: id -> path of its file, where one is known.
            numbers: ids are plain whole numbers, and others may occur (a gallery without a list).
        """
        self._ids, self._paths, self._numbers = dict.fromkeys(ids), paths or {}, numbers
        self._others: dict[str, str] | None = None
        self._found: dict[str, str] = {}

    def own(self, name: str) -> str:
        """The id that a name means; the name itself if it means none or several."""
        if name in self._ids:
            return name
        if name not in self._found:
            self._found[name] = self._look_up(name)
        return self._found[name]

    def lists(self, lists: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
        """Ranked lists in the data set's own ids."""
        return {query: tuple(self.own(name) for name in names) for query, names in lists.items()}

    def gallery(self, names: Iterable[str]) -> tuple[str, ...]:
        """Images named by files, each once, as the gallery if no file lists it.

        Raises DataError for a name that is no number where all ids are.
        """
        found = tuple(dict.fromkeys(self.own(name) for name in names))
        words = [name for name in found if self._numbers and not name.isdecimal()]
        if words:
            raise DataError(
                f"The image ids of this data set are whole numbers, and {words[0]!r} is none: write the numbers, or "
                "file names like 000000123456.jpg."
            )
        return found

    def note(self) -> tuple[str, ...]:
        """A sentence about names in another spelling; empty if there were none."""
        changed = [(name, own) for name, own in self._found.items() if name != own]
        if not changed:
            return ()
        name, own = changed[0]
        return (
            f"{len(changed):,} image ids have another spelling in the file and were recognised: {name!r} as {own!r}.",
        )

    def _look_up(self, name: str) -> str:
        if self._others is None:
            self._others = self._spelled_otherwise()
        for form in _forms(name):
            if form in self._ids:
                return form
            if form in self._others:
                return self._others[form]
            if self._numbers and form.isdecimal():
                return str(int(form))
        return name

    def _spelled_otherwise(self) -> dict[str, str]:
        """Spelling -> the one id that it means."""
        found: dict[str, str] = {}
        several: set[str] = set()
        for own in self._ids:
            file = "" if "@" in own else self._paths.get(own, "").replace("\\", "/").rsplit("/", 1)[-1]
            for form in dict.fromkeys((*_forms(own), *(_forms(file) if file else ()))):
                if found.setdefault(form, own) != own:
                    several.add(form)
        return {form: own for form, own in found.items() if form not in several}


def spellings_of(dataset: CirDataset) -> Spellings:
    """Spellings of a data set's images.

    If no file lists the gallery (CIRCO without COCO's list) and all known ids are plain whole numbers, every number is
    an id.
    """
    named = {image for query in dataset.queries for image in (query.reference_id, *query.target_ids)}
    ids = {*dataset.gallery_ids, *(image for ids in dataset.galleries.values() for image in ids), *named}
    unlisted = not dataset.gallery_ids and not dataset.galleries
    numbers = unlisted and all(name.isdecimal() and str(int(name)) == name for name in ids)
    return Spellings(ids, dataset.images.paths, numbers)


def _forms(name: str) -> Iterator[str]:
    """Ids that a name may mean, the most literal first."""
    texts = dict.fromkeys((name.strip(), name_key(name)))
    for text in texts:
        last = text.replace("\\", "/").rsplit("/", 1)[-1]
        for form in dict.fromkeys((text, split_suffix(text)[0], last, split_suffix(last)[0])):
            yield form
            number = _COCO.sub(r"\1", form)
            if number.isdecimal():
                yield str(int(number))
    if crop := _CROP.fullmatch(name.strip()):
        yield crop_id(crop[1], [float(value) for value in crop.groups()[1:]])
