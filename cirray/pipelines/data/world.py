"""Stage 0: write the embedded world `shapes` to disk in the open folder layout."""

from cirray.core import storage
from cirray.core.artifacts import Manifest, open_stage
from cirray.core.progress import progress
from cirray.core.unfinished import stage_function
from cirray.data.shapes.world import write_world
from cirray.data.writing import partial_folder
from cirray.pipelines.data.config import WorldRun


@stage_function
def run_world(run: WorldRun) -> Manifest:
    """Draw, render and write every image and table of the world.

    Returns: Manifest of kind "world"; counts as in `dataset.json`.
    """
    stage = open_stage(run, "world", kept=["*/*", "*.jsonl"])
    if stage.finished:
        return stage.finished
    if stage.fresh:
        storage.remove(partial_folder(stage.local))  # of a run whose moved files are gone
    with progress("write the world", None, "images") as advance:
        previous = 0

        def report(done: int, total: int) -> None:
            nonlocal previous
            advance(done - previous)
            previous = done

        summary = write_world(run.shapes, stage.local, report)
    return stage.publish(summary["counts"])
