"""One composed query from the command line, answered with pictures on a page of its own."""

import base64
import html
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cirray.core import storage
from cirray.core.errors import DataError
from cirray.core.log import printable
from cirray.data.names import NameFinder
from cirray.index.pictures import media_type
from cirray.pipelines.search.config import SearchRun
from cirray.types import Ranking

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem;background:Canvas;color:CanvasText;color-scheme:light dark}"
    "main{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:1rem}"
    "figure{margin:0}img{width:100%;image-rendering:pixelated;border-radius:8px}figcaption{font-size:12px}"
)


@dataclass(frozen=True)
class Answer:
    """A ranking and the page that shows it."""

    ranking: Ranking
    page: str

    def text(self) -> str:
        """The ranking as lines, then where the pictures are."""
        rows = zip(self.ranking.ids, self.ranking.scores, strict=True)
        lines = [f"{place:>3}  {score:.4f}  {printable(name)}" for place, (name, score) in enumerate(rows, 1)]
        return "\n".join([*lines, "", f"with pictures: {self.page}"])


def run_search(run: SearchRun) -> Answer:
    """Answer one query.

    Raises:
        DataError: an unusable image, text or id.
        IndexMismatchError: the index belongs to another checkpoint.
    """
    from cirray.search_engine import SearchEngine

    engine = SearchEngine.open(run.checkpoint, run.index)
    image, gallery_id = reference(run, engine.gallery.ids, engine.gallery.examples)
    ranking = engine.search(run.text, image, gallery_id, run.k)
    return answer(run, ranking, lambda names: map(engine.gallery.picture, names), image, gallery_id)


def answer(
    run: SearchRun, ranking: Ranking, pictures: Callable[[Sequence[str]], Iterable[bytes]], image: str | None,
    gallery_id: str | None,
) -> Answer:  # fmt: skip
    """Write the page of a ranking.

    Args:
        run: the query.
        ranking: what was found.
        pictures: encoded pictures of gallery images.
        image: file of the reference, or
        gallery_id: its id.
    """
    page = run.out or str(Path("cirray-search.html").absolute())
    asked = Path(image).read_bytes() if image else b""
    names = [*ranking.ids] if image else [str(gallery_id), *ranking.ids]
    found = dict(zip(names, pictures(names), strict=True))
    answers = [(name, found[name]) for name in ranking.ids]
    storage.write_bytes(page, render(run.text, asked or found[str(gallery_id)], answers, ranking.scores).encode())
    return Answer(ranking, page)


def render(text: str, reference: bytes, answers: Sequence[tuple[str, bytes]], scores: Sequence[float]) -> str:
    """A self-contained page: the query on top, the answers below, best first."""
    cards = [
        f"<figure>{_image(picture)}<figcaption>{place}. {html.escape(name)} · {score:.3f}</figcaption></figure>"
        for place, ((name, picture), score) in enumerate(zip(answers, scores, strict=True), 1)
    ]
    query = f'<figure style="width:180px">{_image(reference)}</figure><h1>“{html.escape(text)}”</h1>'
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(text)}</title>'
        f"<style>{_STYLE}</style><body>{query}<main>{''.join(cards)}</main></body></html>"
    )


def reference(
    run: SearchRun, ids: Sequence[str] = (), examples: Sequence[tuple[str, str]] = ()
) -> tuple[str | None, str | None]:
    """A picture's path, or a gallery id: as written, else the one of `ids` with an equivalent spelling.

    Raises:
        DataError: for no reference or two, a file that is not there, or an id that may be either of two.
    """
    if bool(run.image) == bool(run.id):
        shown = [shlex.join(["--id", name, "--text", text]) for name, text in examples[:1]]
        words = ", e.g. ".join(["id=ID of a gallery image", *shown])
        raise DataError(f"A search needs one reference: image=FILE, or {words}.")
    if run.id:
        found = NameFinder({name: name for name in ids}).find(run.id)
        if len(found) > 1:
            raise DataError(f"The id {run.id!r} may be {found[0]!r} or {found[1]!r}; write it as the gallery does.")
        return None, found[0] if found else run.id
    if not Path(run.image).expanduser().is_file():
        raise DataError(
            f"The reference image {run.image!r} is not a file. Give a picture, or id=ID of a gallery image."
        )
    return str(Path(run.image).expanduser()), None


def _image(picture: bytes) -> str:
    kind = media_type(picture)
    if kind == "application/octet-stream":
        return "<p>(no picture kept)</p>"
    return f'<img alt="" src="data:{kind};base64,{base64.b64encode(picture).decode()}">'
