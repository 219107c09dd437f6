"""One composed query from the command line, answered with pictures on a page of its own."""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cirray.core.errors import DataError
from cirray.data.names import NameFinder, spellings
from cirray.index.latest import chosen
from cirray.pipelines.search.config import Box, SearchRun
from cirray.queries import Further, Negative, Reference
from cirray.results import Result, Results
from cirray.types import Ranking


@dataclass(frozen=True)
class Answer:
    """What was found, and the page that shows it."""

    results: Results
    page: str

    def text(self) -> str:
        """The results as lines, then where the pictures are."""
        return f"{self.results!r}\n\nwith pictures: {self.page}"


def run_search(run: SearchRun) -> Answer:
    """Answer one query.

    Raises DataError: an unusable image, text or id; IndexMismatchError: the index belongs to another checkpoint.
    """
    from cirray.search_engine import SearchEngine

    engine = SearchEngine.open(*chosen(run), rerank=run.rerank)
    image, gallery_id = reference(run, engine.gallery.ids, engine.gallery.examples)
    ranking = engine.search(run.text or None, image, gallery_id, run.k, weight=run.weight, further=further(run))
    gallery = engine.gallery
    values = gallery.columns.rows([gallery.row(name) for name in ranking.ids], gallery.columns.chosen(run.fields))
    return answer(run, ranking, lambda names: map(gallery.picture, names), image, gallery_id, values)


def further(run: SearchRun) -> Further:
    """What the query says beyond one reference and a text.

    Raises DataError for a picture that is not a file, or both a text and a picture that are not wanted.
    """
    unwanted, negative = run.unwanted, None
    if unwanted.text or unwanted.image or unwanted.id:
        shown = _picture(unwanted.image, unwanted.id, None, 1.0) if unwanted.image or unwanted.id else None
        negative = Negative(unwanted.text or None, shown, unwanted.weight)
    references = tuple(_picture(item.image, item.id, item.box, item.weight) for item in run.references)
    return Further(run.box, references, negative, run.exclude, run.offset, run.filter or None)


def _picture(image: str, image_id: str, box: Box | None, weight: float) -> Reference:
    return Reference(_file(image) if image else None, image_id or None, box, weight)


def _file(image: str) -> str:
    if not Path(image).expanduser().is_file():
        raise DataError(f"The reference image {image!r} is not a file. Give a picture, or id=ID of a gallery image.")
    return str(Path(image).expanduser())


def answer(
    run: SearchRun, ranking: Ranking, pictures: Callable[[Sequence[str]], Iterable[bytes]], image: str | None,
    gallery_id: str | None, metadata: Sequence[Mapping[str, Any]],
) -> Answer:  # fmt: skip
    """Write the page of a ranking, with the reference's file (`image`) or its id."""
    names = [*ranking.ids] if gallery_id is None else [gallery_id, *ranking.ids]
    found = dict(zip(names, pictures(names), strict=True))
    asked = Path(image).read_bytes() if image else found.get(str(gallery_id), b"")
    rows = zip(ranking.ids, ranking.scores, metadata, strict=True)
    shown = tuple(Result(name, score, picture=found[name], metadata=values) for name, score, values in rows)
    results = Results(shown, run.text, asked)
    return Answer(results, results.save(run.out or Path("cirray-search.html").absolute()))


def reference(
    run: SearchRun, ids: Sequence[str] = (), examples: Sequence[tuple[str, str]] = ()
) -> tuple[str | None, str | None]:
    """A picture's path, or a gallery id: as written, else the one of `ids` that it may mean (`spellings`); or neither.

    Raises DataError for two references, nothing to search by, a file that is not there, or an id that may be either of
    two.
    """
    if run.image and run.id:
        raise DataError("A search has one reference: image=FILE or id=ID of a gallery image; both were given.")
    if not run.image and not run.id and (run.text or run.references):
        return None, None
    if not run.image and not run.id:
        shown = [shlex.join(["--id", name, "--text", text]) for name, text in examples[:1]]
        words = ", e.g. ".join(["id=ID of a gallery image", *shown])
        raise DataError(f"There is nothing to search by: give text=WORDS, image=FILE, or {words}.")
    if run.id:
        found = NameFinder({name: name for name in ids}).find(*spellings(run.id))
        if len(found) > 1:
            raise DataError(f"The id {run.id!r} may be {found[0]!r} or {found[1]!r}; write it as the gallery does.")
        return None, found[0] if found else run.id
    return _file(run.image), None
