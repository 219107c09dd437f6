"""Captions: one text an image by a pool of captioners, cached by image, resumable by part (SPN, step 1); and the
generator that fills templates with them.
"""

from itertools import chain
from typing import Any

import pyarrow as pa

from cirray.core import storage
from cirray.core.artifacts import Manifest, Stage, localize, open_stage
from cirray.core.errors import DataError
from cirray.core.ids import Texts
from cirray.core.unfinished import stage_function
from cirray.data.benchmark import CirDataset
from cirray.data.shapes.corpus import bags, caption_bags
from cirray.data.shapes.world import read_scenes
from cirray.generators.caption_template import pick_templates, save_caption_generator
from cirray.generators.captioners.base import CaptionerSetup
from cirray.pipelines.captions.actors import CaptionImages
from cirray.pipelines.captions.config import CaptionGeneratorRun, CaptionRun
from cirray.pipelines.cluster.parts import Cut, Parts, Rejected, run_parts
from cirray.pipelines.cluster.streaming import Step
from cirray.pipelines.data.datasets import each_content, open_dataset, part_ids
from cirray.triplets.captions import KIND, caption_table, read_captions, rejected_captions
from cirray.triplets.store import PARTS, finished_keys
from cirray.types import stable_id_of


@stage_function
def run_caption(run: CaptionRun) -> Manifest:
    """Caption every image of the asked parts; a killed run goes on after its last finished part.

    Returns: Manifest of kind "captions"; counts `images`, `captions`, `rejected`; with `judge` the metrics `exact`
    (share of captions that tell the scene, among images that the data set does not caption) and `judged`.

    Raises ArtifactError: an input is missing, or another run's output is at `out`; DataError: no image, or none that
    could be captioned; GenerationError when images are lost.
    """
    dataset = open_dataset(run.data)
    ids = part_ids(dataset, run.parts)
    if not ids:
        raise DataError(f"No image in the parts {', '.join(run.parts)} of {dataset.describe()}. Name parts it has.")
    stage = open_stage(run, KIND, _inputs(run, dataset, ids), PARTS)
    if stage.finished:
        return stage.finished
    sums = run_parts(stage, _parts(run, stage, dataset, ids), run.ray)
    return _publish(run, stage, dataset, sums["reused"])


def _parts(run: CaptionRun, stage: Stage, dataset: CirDataset, ids: Texts) -> Parts:
    columns = {
        "image_id": ids, "place": dataset.images.places(ids),
        "known": Texts(dataset.captions.get(name, "") for name in ids),
    }  # fmt: skip
    return Parts(
        "caption images", "images", Cut(columns, run.part_rows), [_step(run, stage)],
        found=lambda: finished_keys(stage.work_uri, ("image_id",)),
    )  # fmt: skip


def _step(run: CaptionRun, stage: Stage) -> Step:
    setup = CaptionerSetup(run.pool.device, run.batch, run.limits)
    reuse = [str(localize(uri, KIND)) for uri in run.reuse]
    actor = {"captioner": run.captioner, "setup": setup, "work_uri": stage.work_uri, "reuse": reuse}
    return Step(CaptionImages, actor, run.pool)


def _publish(run: CaptionRun, stage: Stage, dataset: CirDataset, reused: int) -> Manifest:
    table, rejected = caption_table(stage.work_uri), Rejected.of([rejected_captions(stage.work_uri)], "image_id")
    rejected.refuse_all(stage, len(table), "None of {count} images was captioned, most often: {reason}")
    counts = {"images": len(table) + len(rejected), "captions": len(table), "rejected": len(rejected)}
    extra = {"captioner": table.column("captioner")[0].as_py(), "reused": reused, "rejected": rejected.first()}
    return stage.publish(counts, _exactness(run, dataset, table) if run.judge else {}, extra)


def _exactness(run: CaptionRun, dataset: CirDataset, table: pa.Table) -> dict[str, Any]:
    """Share of captions that tell every object, its looks and its place, and nothing else."""
    scenes = read_scenes(storage.local_path(run.judge))
    columns = (table.column(name).to_pylist() for name in ("image_id", "caption"))
    fresh = [(image, text) for image, text in zip(*columns, strict=True) if image not in dataset.captions]
    right = sum(caption_bags(text) == bags(scenes[image]) for image, text in fresh if image in scenes)
    return {"exact": right / len(fresh) if fresh else 0.0, "judged": len(fresh)}


def _inputs(run: CaptionRun, dataset: CirDataset, ids: Texts) -> dict[str, str]:
    """Digest of what is read of the data set."""
    reads = run.captioner.reads
    known = (dataset.captions.get(name, "") for name in ids) if reads == "caption" else ()
    digest = stable_id_of(chain(("caption",), ids, ("known",), known))
    if reads == "picture":
        digest = stable_id_of(chain((digest,), each_content(dataset.images.places(ids), run.limits)))
    return {"data": digest}


@stage_function
def run_caption_generator(run: CaptionGeneratorRun) -> Manifest:
    """Write a generator for `cirray generate`.

    Returns: Manifest of kind "generator"; counts `captions` and `templates`.

    Raises ArtifactError: captions are missing, or another artifact is at `out`; ConfigError for an unknown template;
    DataError when two captions artifacts disagree about an image.
    """
    version, templates = pick_templates(run.templates)
    stage = open_stage(run, "generator", {"templates": f"{version} {sorted(templates.items())}"})
    if stage.finished:
        return stage.finished
    rows = list(read_captions(run.captions).values())
    save_caption_generator(stage.local, rows, run.templates, run.token_limit, run.rewrite.to_dict())
    return stage.publish({"captions": len(rows), "templates": len(templates)}, extra={"prompt_version": version})
