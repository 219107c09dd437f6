"""The oracle's triplets: the pairs of a generated artifact with the embedded world's true texts.

Only pairs one edit apart have a true text; the others are rejected with a reason.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cirray.core import storage
from cirray.core.artifacts import Manifest, localize, open_stage
from cirray.core.seeding import numpy_generator
from cirray.core.unfinished import stage_function
from cirray.data.shapes.grammar import true_text
from cirray.data.shapes.scenes import Scene, difference
from cirray.data.shapes.world import read_scenes
from cirray.pipelines.texts.config import OracleRun
from cirray.triplets.schema import rejected_table, triplet_table
from cirray.triplets.store import KIND, TripletStore, write_part
from cirray.types import stable_id

_REASON = "more than one edit apart: no single true text"


@stage_function
def run_oracle(run: OracleRun) -> Manifest:
    """Write the oracle's triplets.

    Returns: Manifest of kind "triplets"; counts of triplets and of rejected pairs.

    Raises ArtifactError when the generated triplets or the world are missing.
    """
    stage = open_stage(run, KIND)
    if stage.finished:
        return stage.finished
    rows = list(_rows(run, read_scenes(Path(localize(run.world, "world")))))
    kept = [row for row, reason in rows if not reason]
    refused = [_refused(row) for row, reason in rows if reason]
    write_part(stage.work_uri, "part-00000", triplet_table(kept), rejected_table(refused))
    storage.write_bytes(
        storage.join(stage.work_uri, "README.txt"), b"True texts of the embedded world: an upper bound.\n"
    )
    return stage.publish({"triplets": len(kept), "rejected": len(refused)})


def _rows(run: OracleRun, scenes: dict[str, Scene]) -> Iterator[tuple[dict[str, Any], bool]]:
    table = TripletStore.open(run.triplets).table()
    names = ("pair_id", "reference_id", "target_id", "group_id", "split")
    for row in table.select(list(names)).to_pylist():
        reference, target = scenes[row["reference_id"]], scenes[row["target_id"]]
        forward = true_text(
            reference, target, numpy_generator(run.seed, "oracle", row["reference_id"], row["target_id"])
        )
        edit = difference(reference, target)
        row |= {
            "triplet_id": stable_id("oracle", row["reference_id"], row["target_id"], run.seed),
            "source": "oracle", "generator": "oracle", "edit": edit.kind if edit else "",
        }  # fmt: skip
        yield {**row, "modification": forward or ""}, forward is None


def _refused(row: dict[str, Any]) -> dict[str, Any]:
    names = ("triplet_id", "pair_id", "reference_id", "target_id", "source", "generator")
    return {name: row[name] for name in names} | {"reason": _REASON}
