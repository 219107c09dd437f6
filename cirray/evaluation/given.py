"""Vectors and lists from files, matched to a benchmark's queries, galleries and image ids. No Ray."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from cirray.core.errors import ConfigError, DataError
from cirray.data.benchmark import CirDataset, Protocol
from cirray.evaluation.plan import EvaluationPlan, make_plan
from cirray.evaluation.spellings import Spellings
from cirray.features.vector_files import VectorFile, read_vectors


@dataclass(frozen=True)
class GivenVectors:
    """Queries and gallery as files, the gallery's ids in the data set's spelling."""

    queries: VectorFile
    gallery: tuple[VectorFile, ...]


def open_vectors(
    queries: str, query_ids: str, gallery: Sequence[str], gallery_ids: Sequence[str], spellings: Spellings
) -> GivenVectors:
    """Open the files; only ids are read, beside the files where no JSON list of them is named.

    Raises DataError: a file that cannot be used.
    """
    names = gallery_ids or ("",) * len(gallery)
    asked = read_vectors(queries, query_ids)
    files = [read_vectors(path, ids) for path, ids in zip(gallery, names, strict=True)]
    return GivenVectors(asked, tuple(replace(file, ids=_owned(file, spellings)) for file in files))


def _owned(file: VectorFile, spellings: Spellings) -> tuple[str, ...]:
    """The file's ids in the data set's spelling, each once."""
    found: dict[str, str] = {}
    for name in file.ids:
        own = spellings.own(name)
        if own in found:
            raise DataError(f"{file.path!r} holds {found[own]!r} and {name!r}, which are both the image {own!r}.")
        found[own] = name
    return tuple(found)


def check_sides(queries: str, gallery: Sequence[str], gallery_ids: Sequence[str]) -> None:
    """Refuse vectors of only one side, and different numbers of id files and vector files.

    Raises ConfigError saying what is missing.
    """
    if (queries or gallery) and not (queries and gallery):
        raise ConfigError("Vectors are needed of both sides: queries=FILE and gallery=FILE (or gallery=[FILE,FILE]).")
    if gallery_ids and len(gallery_ids) != len(gallery):
        raise ConfigError(
            f"gallery_ids names {len(gallery_ids)} files for {len(gallery)} of vectors; one each is needed."
        )


def plan_for(
    dataset: CirDataset, protocol: Protocol, named: Iterable[str], spellings: Spellings, scored: bool = True
) -> tuple[EvaluationPlan, tuple[str, ...]]:
    """The plan, and a note if the data set's files do not list the gallery (CIRCO without COCO's list).

    The gallery is then what the given files name (`named`). With `scored` queries must have targets.

    Raises DataError as `make_plan`, or names that cannot be ids of this data set.
    """
    if dataset.gallery_ids or dataset.galleries:
        return make_plan(dataset.queries, dataset.gallery_ids, protocol, dataset.galleries, scored), ()
    images = spellings.gallery(named)
    note = f"The gallery is unknown; the {len(images):,} images named by the given files are used for it, unchecked."
    return make_plan(dataset.queries, images, protocol, scored=scored), (note,)
