"""Stage 4b: write texts for pairs by a pool of generator actors; no row is lost or doubled."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cirray.core import storage
from cirray.core.artifacts import Manifest, Stage, open_stage, read_manifest
from cirray.core.contents import canonical
from cirray.core.errors import DataError, GenerationError
from cirray.core.unfinished import stage_function
from cirray.features.store import check_tower
from cirray.generators.base import WriterSetup
from cirray.generators.config import LmmConfig, PicturesConfig, SavedConfig
from cirray.generators.places import described
from cirray.pipelines.cluster.parts import Cut, Parts, Rejected, run_parts
from cirray.pipelines.cluster.streaming import Step
from cirray.pipelines.data.datasets import check_leaks, contents_of, guard_inputs, open_dataset
from cirray.pipelines.texts.actors import GenerateTexts, GeneratorLoader, load_generator, way_name
from cirray.pipelines.texts.config import GenerateRun
from cirray.pipelines.texts.judging import text_accuracy
from cirray.pipelines.texts.ordering import order_pairs
from cirray.triplets.filters import triplet_filter
from cirray.triplets.pairs import read_pairs
from cirray.triplets.schema import REJECTED_SCHEMA, TRIPLET_SCHEMA, image_ids, refused_rows, triplet_ids
from cirray.triplets.store import (
    DATA,
    PARTS,
    REJECTED,
    each_table,
    finished_keys,
    part_names,
    read_file,
    row_counts,
    write_table,
)
from cirray.types import stable_id

_FILTERED = ".filtered.parquet"
"""End of the names of files with the rows that filters drop."""


@dataclass(frozen=True)
class TextPlan:
    """Pairs in their order, cut into parts; what else a text depends on, and names of a pair's texts (`way_name`)."""

    tables: Cut
    recipe: str
    generator: str
    directions: tuple[str, ...]

    def keys(self, part: pa.Table) -> pa.Array:
        """Ids of the triplets that a part must give."""
        return triplet_ids(part.column("pair_id").combine_chunks(), self.recipe, self.directions)


@stage_function
def run_generate(run: GenerateRun, load: GeneratorLoader = load_generator) -> Manifest:
    """Write a text for every pair; resumes from finished parts. `load` is called once in every actor.

    Each triplet id appears exactly once in the artifact, among the triplets or the rejected rows, also after a crash.

    Returns: Manifest of kind "triplets"; counts `pairs`, `triplets`, `rejected`.

    Raises ArtifactError: an input is missing, a generator is of another kind, or another run's output is at `out`;
    IndexMismatchError: features of another vision tower than the generator's; GenerationError when rows are lost or
    doubled, or every row was rejected; DataError when a pair holds a guarded image.
    """
    guard = check_leaks(run.guard, _images(run), run.allow_leaks, f"The pairs artifact {run.pairs!r}")
    _check_generator(run)
    places, contents = pair_pictures(run)
    stage = open_stage(run, "triplets", {**guard_inputs(guard), **contents}, PARTS)
    if stage.finished:
        return stage.finished
    plan = make_plan(run, places)
    sums = run_parts(stage, text_parts(run, stage, plan, load), run.ray)
    filter_rows(stage, run)
    return publish(stage, plan, run, {**guard, **_tokens(sums)})


def pair_pictures(run: GenerateRun) -> tuple[dict[str, str], dict[str, str]]:
    """Places (`Place.text`) of the pairs' images by id, and the digest of their bytes; nothing where none is read.

    Raises DataError: the data set lacks an image of a pair.
    """
    settings = run.generator.settings
    if not isinstance(settings, PicturesConfig) or settings.data is None:
        return {}, {}
    dataset, ids = open_dataset(settings.data), image_ids(read_pairs(run.pairs)).to_pylist()
    absent = [image for image in ids if image not in dataset.images]
    if absent:
        raise DataError(
            f"The data set {dataset.name!r} has no picture of {len(absent):,} of the {len(ids):,} images in pairs, "
            f"e.g. {absent[0]!r}; it has e.g. {min(dataset.images.paths, default='none')!r}. Name the pairs' own data "
            "set in generator.settings.data."
        )
    places = {image: dataset.images.place(image).text() for image in ids}
    digest = stable_id("pictures", *ids, *contents_of(list(places.values()), settings.limits))
    return places, {"generator.settings.data": digest}


def make_plan(run: GenerateRun, places: Mapping[str, str] | None = None) -> TextPlan:
    """Read and order the pairs, and cut them into parts.

    `places` are those of the images, where the generator looks at pictures.

    Raises GenerationError when a pair appears twice.
    """
    table = order_pairs(read_pairs(run.pairs))
    double = len(table) - pc.count_distinct(table.column("pair_id")).as_py()
    if double:
        raise GenerationError(f"{double} pairs appear twice in the pairs artifact {run.pairs!r}; mine them again.")
    saved, settings = _saved(run), canonical(run.generator.identity())
    generator = saved.digest if saved else stable_id("generator", settings)
    recipe = stable_id("recipe", generator, settings, run.seed)
    ways = ("forward", "reverse") if run.directions == "both" else ("forward",)
    directions = tuple(way_name(way, number) for number in range(run.generator.texts) for way in ways)
    names, texts = (pa.array(column, pa.string()) for column in ((places or {}).keys(), (places or {}).values()))
    for end in ("reference", "target") if places else ():
        table = table.append_column(f"{end}_place", texts.take(pc.index_in(table.column(f"{end}_id"), names)))
    return TextPlan(Cut(table, run.part_rows), recipe, generator, directions)


def text_parts(run: GenerateRun, stage: Stage, plan: TextPlan, load: GeneratorLoader) -> Parts:
    """The planned pairs, and a pool of generators that write a part each."""
    setup = WriterSetup(run.pool.device, run.seed, "both" if run.reverse_texts else "forward")
    row: dict[str, Any] = {"source": run.source, "split": run.split, "generator": plan.generator, "seed": run.seed}
    row |= {"weight": run.weight} if run.weight != 1 else {}
    settings: dict[str, Any] = {
        "load": load, "generator": run.generator, "setup": setup, "features": list(run.features),
        "work_uri": stage.work_uri, "row": row, "recipe": plan.recipe, "both": run.directions == "both",
    }  # fmt: skip
    steps, by = [Step(GenerateTexts, settings, run.pool)], None
    chosen = run.generator.settings
    if isinstance(chosen, LmmConfig) and chosen.engine.kind == "ray_llm":
        from cirray.pipelines.texts.ray_llm import ByRayLlm, unasked

        by = ByRayLlm(GenerateTexts(**{**settings, "load": unasked}), chosen, setup)
    return Parts("write texts", "pairs", plan.tables, steps, plan.keys, partial(_found, stage), by=by)


def _found(stage: Stage) -> Iterator[tuple[str, pa.Array]]:
    """Ids of every finished part, with those that a filter has taken out of it."""
    filtered = set(_filtered(stage))
    for name, ids in finished_keys(stage.work_uri):
        if name in filtered:
            gone = _gone(stage, name)
            ids = pa.concat_arrays([ids, gone.filter(pc.invert(pc.is_in(gone, ids)))])
        yield name, ids


def filter_rows(stage: Stage, run: GenerateRun) -> None:
    """Move rows that a filter drops to `rejected/`: first write those of all parts there, then remove them, part by
    part.

    A run killed before all are written judges every row again; one killed later goes on removing.
    """
    marker = storage.join(stage.work_uri, "filtered")
    if run.filters.names and not storage.exists(marker):
        judge = triplet_filter(run.filters)
        for name in part_names(stage.work_uri):
            table = read_file(stage.work_uri, DATA, f"{name}.parquet", TRIPLET_SCHEMA)
            refused = refused_rows(table, judge(table))
            if len(refused):
                write_table(storage.join(stage.work_uri, REJECTED, f"{name}{_FILTERED}"), refused)
        storage.write_bytes(marker, b"")
    for name in _filtered(stage):
        table = read_file(stage.work_uri, DATA, f"{name}.parquet", TRIPLET_SCHEMA)
        kept = table.filter(pc.invert(pc.is_in(table.column("triplet_id"), _gone(stage, name))))
        if len(kept) < len(table):
            write_table(storage.join(stage.work_uri, DATA, f"{name}.parquet"), kept)
    storage.remove(marker)


def publish(stage: Stage, plan: TextPlan, run: GenerateRun, guard: dict[str, Any]) -> Manifest:
    """Check the counts and publish. Raises GenerationError: rows are missing, or every one was rejected."""
    rejected = Rejected.of(each_table(stage.work_uri, REJECTED, REJECTED_SCHEMA), "triplet_id")
    pairs, triplets = len(plan.tables.table), sum(row_counts(stage.work_uri))
    if triplets + len(rejected) != pairs * len(plan.directions):
        expected = pairs * len(plan.directions)
        raise GenerationError(f"{triplets} triplets and {len(rejected)} rejected rows are not {expected}.")
    rejected.refuse_all(stage, triplets, "All {count} rows were rejected, most often: {reason}.", GenerationError)
    counts = {"pairs": pairs, "triplets": triplets, "rejected": len(rejected)}
    metrics = text_accuracy(each_table(stage.work_uri, DATA, TRIPLET_SCHEMA), run.judge) if run.judge else {}
    saved = _saved(run)
    saw = saved.extra.get("saw", {}) if saved else {}
    reasons = [list(item) for item in rejected.reasons()[:5]]
    facts = {"generator": plan.generator, "generator_saw": saw, "reasons": reasons, **guard}
    return stage.publish(counts, metrics, facts)


def _tokens(sums: Mapping[str, int]) -> dict[str, Any]:
    """Tokens read and written by this run, for the manifest."""
    told = {name: sums[name] for name in ("tokens_in", "tokens_out") if sums.get(name)}
    return {"tokens": told} if told else {}


def _images(run: GenerateRun) -> Iterator[str]:
    """Images of the pairs, read when first asked for."""
    for image in image_ids(read_pairs(run.pairs)):
        yield image.as_py()


def _check_generator(run: GenerateRun) -> None:
    """Refuse a generator of another kind than named, and features of another tower than its own."""
    settings, saved = run.generator.settings, _saved(run)
    if saved is None or not isinstance(settings, SavedConfig):
        return
    described(settings.source, run.generator.kind)
    wanted = str(saved.extra.get("encoder_digest") or "")
    for uri in run.features if wanted else ():
        found = read_manifest(uri, "features").extra.get("encoder_digest")
        check_tower([uri], str(found), settings.source, wanted)


def _saved(run: GenerateRun) -> Manifest | None:
    """The generator's manifest, where it is an artifact."""
    settings = run.generator.settings
    return read_manifest(settings.source, "generator") if isinstance(settings, SavedConfig) else None


def _filtered(stage: Stage) -> list[str]:
    """Names of the parts that have lost rows to a filter."""
    names = storage.list_files(storage.join(stage.work_uri, REJECTED))
    return [name.removesuffix(_FILTERED) for name in names if name.endswith(_FILTERED)]


def _gone(stage: Stage, name: str) -> pa.Array:
    """Ids that a filter drops of a part."""
    table = read_file(stage.work_uri, REJECTED, f"{name}{_FILTERED}", REJECTED_SCHEMA)
    return table.column("triplet_id").combine_chunks()
