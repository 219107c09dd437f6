"""Judge mined pairs and generated texts by the known scenes of a shapes world; nothing is filtered."""

from collections import Counter
from collections.abc import Iterable

import pyarrow as pa

from cirray.core import storage
from cirray.core.errors import DataError
from cirray.data.shapes.scenes import Scene, difference
from cirray.data.shapes.world import SCENES, read_scenes
from cirray.evaluation.texts import judge_texts


def is_shapes_world(root: str) -> bool:
    """Whether a local data root has the images' scenes."""
    return bool(root) and storage.is_local(root) and (storage.local_path(root) / SCENES).is_file()


def single_edit_share(pairs: pa.Table, root: str) -> float:
    """Share of pairs whose scenes are exactly one edit apart.

    Raises DataError naming an image that is not in the world.
    """
    scenes = read_scenes(storage.local_path(root))
    ends = zip(*(pairs.column(name).to_pylist() for name in ("reference_id", "target_id")), strict=True)
    hits = sum(difference(_scene(scenes, first), _scene(scenes, second)) is not None for first, second in ends)
    return hits / max(len(pairs), 1)


def text_accuracy(tables: Iterable[pa.Table], root: str) -> dict[str, float]:
    """Accuracy of the texts in triplet tables.

    Returns: `exact`: share of texts that turn the reference into exactly the target; `exact_single_edits`: the same
    among pairs that are one edit apart (the others cannot be right); `direction`: share not telling the opposite.
    """
    scenes, total = read_scenes(storage.local_path(root)), Counter[str]()
    for table in tables:
        names = ("reference_id", "target_id", "modification")
        references, targets, texts = (table.column(name).to_pylist() for name in names)
        ends = [(_scene(scenes, a), _scene(scenes, b)) for a, b in zip(references, targets, strict=True)]
        quality, single = judge_texts(texts, ends), sum(difference(*pair) is not None for pair in ends)
        exact, direction = (round(share * len(texts)) for share in (quality.exact, quality.direction))
        total.update(rows=len(texts), exact=exact, direction=direction, single=single)
    rows = max(total["rows"], 1)
    return {
        "exact": total["exact"] / rows,
        "exact_single_edits": total["exact"] / total["single"] if total["single"] else 0.0,
        "single_edits": total["single"] / rows,
        "direction": total["direction"] / rows,
    }


def _scene(scenes: dict[str, Scene], image_id: str) -> Scene:
    if image_id not in scenes:
        raise DataError(f"The shapes world knows no image {image_id!r}; name the root that the images come from.")
    return scenes[image_id]
