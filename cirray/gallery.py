"""Five lines of Python: a model, a folder of pictures as a gallery, and answers that show themselves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cirray.core.artifacts import is_complete, read_manifest
from cirray.core.config import validate
from cirray.core.environ import artifact_root
from cirray.core.errors import ConfigError, DataError
from cirray.data.images import open_image
from cirray.data.pixels import thumbnail
from cirray.data.places import Box
from cirray.generators.rerankers.config import RerankChoice
from cirray.image_text import ImageSource, ImageTextEncoder, open_encoder
from cirray.index.store import KIND, LIVING, read_searchable
from cirray.models.opening import own_source
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.search.index import run_index
from cirray.queries import Further, Negative, Reference
from cirray.results import Result, Results
from cirray.search_engine import SearchEngine

Rerank = str | Mapping[str, Any] | None
"""What scores the first answers again: a kind, `matching`, or all settings, `{"kind": "matching", "top": 20}`."""
SHOWN = 256
"""Longest side in pixels of a reference beside its answers."""


class Model(ImageTextEncoder):
    """A model of pictures and texts, trained or not: vectors, scores, and galleries to search in."""

    def __init__(self, place: str, device: str = "cpu", composition: str = "", weight: float | None = None) -> None:
        """See `cirray.load`."""
        found = open_encoder(place, device, composition, weight)
        super().__init__(found.encoder, found.vision, found.transform, device, source=place)
        self._chosen = {"composition": composition, "weight": weight}

    def __repr__(self) -> str:
        return f"Model({self.source!r}, composition={self.composition.name!r}, weight={self.composition.weight})"

    def index(self, images: str | Path, out: str = "", rerank: Rerank = None, **fields: Any) -> "Gallery":
        """Embed a folder of pictures, with a progress bar, and open it as a gallery.

        The same folder again costs a look at its files: of one that has changed, only new and changed pictures are
        embedded. A gallery that is open stays what it was.

        Args:
            images: the folder.
            out: where the index is written; empty: `@indexes/IMAGES-MODEL`.
            rerank: what scores the first answers of every query again.
            fields: any other field of `cirray index`, such as `root` or `index={"kind": "exact"}`.

        Raises:
            ArtifactError: something else is at `out`.
            ConfigError: the model lacks what the reranker needs.
            DataError: the folder holds no picture.
        """
        _choice(rerank)  # told before anything is embedded
        given = {"model": self.source, **self._chosen, "images": str(images), "device": str(self.device)}
        given |= {name: value for name, value in (("root", artifact_root()), ("out", str(out))) if value}
        run = validate(IndexRun, {**given, **fields})
        run_index(run)
        return Gallery(run.out, str(self.device), rerank=rerank)


class Gallery:
    """An indexed set of pictures that is searched by picture and text, by text alone, or by a picture alone."""

    def __init__(self, index: str, device: str = "cpu", checkpoint: str = "", rerank: Rerank = None) -> None:
        """Open an index and the model that made it.

        Args:
            index: index artifact.
            device: where the model runs.
            checkpoint: the model where it is no longer where the index was made with it, or another query side.
            rerank: what scores the first answers of every query again.

        Raises:
            ArtifactError: index or model are missing or damaged.
            IndexMismatchError: the checkpoint did not make the index.
            ConfigError: the model lacks what the reranker needs.
            GenerationError: no server answers the reranker.
        """
        self.source = index
        made_with = checkpoint or str(read_searchable(index).config["checkpoint"])
        self.engine = SearchEngine.open(made_with, index, device, rerank=_choice(rerank))

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Gallery of {len(self):,} pictures, {self.source}"

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the pictures, ascending: their names below the folder."""
        return self.engine.gallery.ids

    def search(
        self, image: ImageSource | Sequence[ImageSource | Reference] | None = None, text: str | None = None,
        k: int = 10, weight: float | None = None, *, box: Box | None = None,
        unwanted: str | Negative | None = None, filter: str | None = None, exclude: Sequence[str] = (),
        offset: int = 0, fields: Sequence[str] = ("*",),
    ) -> Results:  # fmt: skip
        """The pictures that are meant, best first.

        Args:
            image: the reference: an id of this gallery (then it is left out of the answers), or a file, encoded bytes
                or a `PIL.Image`; a list of them, or of `Reference`s with weights, for several. None: the text is
                searched alone.
            text: what to change in the reference, or what is looked for. None: pictures like the reference.
            k: how many.
            weight: the text's share, 0 (picture alone) to 1 (text alone), where the model has one.
            box: x, y, width, height of the part of the reference that is meant, in shares of the picture or in pixels.
            unwanted: what the answers should not look like, as a text or a `Negative`.
            filter: which pictures may be answered, e.g. `"price < 50 and category in ['shoes', 'bags']"`.
            exclude: ids that are not answered.
            offset: answers that are passed over.
            fields: metadata columns of the answers; `*` is all of them.

        Raises:
            DataError: for nothing to search by, an unusable picture or text, or what the model or the gallery has not.
        """
        if self.engine.follower is not None:
            self.engine.follower.poll()
        several = isinstance(image, Sequence) and not isinstance(image, str | bytes)
        items: Any = image if several else [image]
        pictures = tuple(map(self._picture, items))
        negative = Negative(unwanted) if isinstance(unwanted, str) else unwanted
        first, references = (Reference(), pictures) if several else (pictures[0], ())
        told = Further(box, references, negative, tuple(exclude), offset, filter)
        gallery = self.engine.gallery
        names = gallery.columns.chosen(fields)
        ranking = self.engine.search(text, first.image, first.gallery_id, k, weight=weight, further=told)
        values = gallery.columns.rows([gallery.row(name) for name in ranking.ids], names)
        rows = (
            Result(name, score, self._path(name), self._kept(name), found)
            for name, score, found in zip(ranking.ids, ranking.scores, values, strict=True)
        )
        return Results(tuple(rows), text or "", self._shown(next(iter(pictures), Reference())))

    def _picture(self, item: ImageSource | Reference | None) -> Reference:
        if isinstance(item, Reference):
            return item
        name, picture = self._reference(item)
        return Reference(picture, name)

    def _shown(self, reference: Reference) -> bytes:
        """The reference as the answers show it; empty for none."""
        return self._kept(reference.gallery_id) if reference.gallery_id is not None else _encoded(reference.image)

    def _reference(self, image: ImageSource | None) -> tuple[str | None, ImageSource | None]:
        """An id of the gallery, or a picture."""
        if not isinstance(image, str):
            return None, image
        if image in self.engine.gallery:
            return image, None
        if not Path(image).expanduser().is_file():
            raise DataError(
                f"{image!r} is neither a picture file nor an id of this gallery, such as {self.ids[0]!r}. To search by "
                "text alone, write text=..."
            )
        return None, str(Path(image).expanduser())

    def _kept(self, name: str) -> bytes:
        return self.engine.gallery.picture(name)

    def _path(self, name: str) -> str:
        found = self.engine.gallery.original(name)
        return str(found[0]) if found else ""


def _encoded(picture: ImageSource | None) -> bytes:
    """A reference as the answers show it; empty for none."""
    name = "upload" if isinstance(picture, bytes) else None
    return b"" if picture is None else thumbnail(open_image(picture, name=name), SHOWN)


def load_any(
    place: str, device: str = "cpu", composition: str = "", weight: float | None = None, rerank: Rerank = None
) -> Any:
    """See `cirray.load`."""
    kind = read_manifest(place).kind if is_complete(place) else ""
    if rerank is not None and kind not in (KIND, LIVING):
        raise ConfigError(
            f"rerank is a gallery's, and {place!r} is no index. Load the index, or give it to index(): "
            "cirray.load(MODEL).index(FOLDER, rerank=...)."
        )
    own = None if kind in (KIND, LIVING) else own_source(place)
    if kind not in (KIND, LIVING) and (own is None or own[1] != "generator"):
        return Model(place, device, composition, weight)
    if composition or weight is not None:
        what = "an index" if own is None else "a generator"
        raise ConfigError(f"composition and weight are a model's, and {place!r} holds {what}. Leave them out.")
    if own is None:
        return Gallery(place, device, rerank=rerank)
    from cirray.generators.store import load_generator

    return load_generator(own[0], device)


def _choice(rerank: Rerank) -> RerankChoice | None:
    if rerank is None:
        return None
    return validate(RerankChoice, rerank if isinstance(rerank, Mapping) else {"kind": rerank})
