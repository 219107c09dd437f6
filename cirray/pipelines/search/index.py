"""Stage 9: embed a gallery with the trained encoder and build its index.

Images are encoded in parts, here or by a pool of Ray actors, each written atomically. What the index of a folder held
before, and the parts of a killed run, are not encoded again (`rows`). All are then joined in id order and given to
`cirray.index`.
"""

from dataclasses import replace

from cirray.core import storage
from cirray.core.artifacts import Manifest, check_place, is_complete, open_stage, read_manifest
from cirray.core.contents import MANIFEST
from cirray.core.log import get_logger
from cirray.core.unfinished import stage_function
from cirray.index.store import KIND, LIVING
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.search.living_config import AddRun
from cirray.pipelines.search.models import with_checkpoint
from cirray.pipelines.search.plan import IndexPlan, make_plan
from cirray.pipelines.search.rows import FOLDER, read_seen, write_seen

_LOGGER = get_logger("pipelines.index")


@stage_function
def run_index(run: IndexRun) -> Manifest:
    """Index a folder of pictures, or the gallery of a data set whose features are stored.

    A folder that was indexed here before is compared with the index, and only what is new or changed is encoded. The
    result is the one of a new index; it takes the place of the former in one step. With `living` the rows go to a table
    that is written to later on (`cirray.catalogue`), and the differences of the folder are written to that.

    Returns: Manifest of kind "index", or "gallery"; counts `images` and `rejected`; `extra["rejected"]` holds the first
        reasons, `extra["examples"]` the clearest queries of the data set (reference id and text).

    Raises ArtifactError: checkpoint or features are missing, or another artifact is at `out`; ConfigError: settings of
    the index that its backend refuses; DataError: no image could be used; IndexMismatchError: features of another
    vision tower.
    """
    run = with_checkpoint(run)
    if run.living and is_complete(run.out):
        return _brought_up_to_date(run)
    kind = LIVING if run.living else KIND
    check_place(run, kind)
    plan = make_plan(run)
    stage = open_stage(run, kind, plan.inputs, [f"{FOLDER}/*"], living=["images", "metadata"] if plan.changes else [])
    if stage.finished:
        return _as_before(run, plan, stage.finished)
    from cirray.pipelines.search.making import make_index  # torch and the models

    manifest = make_index(run, plan, stage)
    if plan.changes and stage.former:
        _LOGGER.info("%s: %s", run.images, plan.changes.told())
    return manifest


def _brought_up_to_date(run: IndexRun) -> Manifest:
    """A gallery that is there, with the differences of its folder; its manifest with counts of what was done."""
    described = read_manifest(run.out, LIVING)
    if run.images is None:
        return described
    from cirray.pipelines.search.changes import run_add

    fields = {name: getattr(run, name) for name in ("checkpoint", "metadata", "limits", "batch", "device")}
    done = run_add(AddRun(gallery=run.out, source=run.images, gone=True, **fields))
    return replace(described, counts=dict(done.counts))


def _as_before(run: IndexRun, plan: IndexPlan, finished: Manifest) -> Manifest:
    """A finished index; where its folder lies now, and how its files were seen, is noted for the next time."""
    if plan.changes is None:
        return finished
    _LOGGER.info("%s: %s", run.images, plan.changes.told())
    if list(plan.changes.rows) != read_seen(run.out):
        write_seen(run.out, plan.changes.rows)
    if finished.extra.get("originals") == plan.folder:
        return finished
    moved = replace(finished, extra={**finished.extra, "originals": plan.folder})
    storage.write_bytes(storage.join(run.out, MANIFEST), moved.to_json().encode())
    return moved
