"""A data set counts by what it holds: one that moved is the same, one that changed under the same name is another."""

import json
import shutil

import pytest

from cirray.core.config import validate
from cirray.core.errors import ArtifactError
from cirray.data.config import ShapesConfig
from cirray.data.shapes.world import write_world
from cirray.pipelines.features.config import TowersRun
from cirray.pipelines.features.towers import run_towers
from cirray.pipelines.texts.config import GeneratorRun
from cirray.pipelines.texts.generator import run_generator
from cirray.pipelines.zeroshot.clip import run_clip
from cirray.pipelines.zeroshot.config import ClipRun

SMALL = {"steps": 1, "batch": 8, "checkpoint_every": None}
STAGES = {
    "towers": (run_towers, TowersRun, {
        "vision": "train", "vision_training": {**SMALL, "objective": "captions"},
        "vision_model": {"width": 16, "layers": 1, "heads": 2, "intermediate": 16},
    }),
    "language": (run_towers, TowersRun, {
        "language": "train", "corpus": "data", "language_training": SMALL,
        "language_model": {"width": 16, "layers": 1, "heads": 2, "intermediate": 16},
    }),
    "clip": (run_clip, ClipRun, {
        "source": "train", "corpus": "data", "training": SMALL,
        "model": {"vision_width": 16, "text_width": 16, "embed_dim": 12, "vision_layers": 1, "text_layers": 1},
    }),
    "train-generator": (run_generator, GeneratorRun, {
        "features": [], "alignment_training": SMALL, "training": SMALL, "evaluate_pairs": 2, "zero_shot": False,
    }),
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("home")
    sizes = {"labelled_families": 6, "heldout_families": 2, "pool_families": 0, "gallery_references": 0}
    write_world(ShapesConfig(**sizes), root / "world")
    run_towers(validate(TowersRun, {"out": str(root / "towers")}))
    return root


def another_caption(world):
    path = world / "captions.jsonl"
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(first), "caption": "a red circle"}), *others]) + "\n")


def another_picture(world):
    first, second, *_ = sorted((world / "labelled").iterdir())
    first.write_bytes(second.read_bytes())


CHANGES = [(name, another_caption) for name in STAGES]
CHANGES += [(name, another_picture) for name in STAGES if name != "language"]


@pytest.mark.parametrize("name, change", CHANGES)
def test_a_data_set_that_moved_is_the_same_and_one_that_changed_is_another(home, tmp_path, name, change):
    function, cls, fields = STAGES[name]
    if cls is GeneratorRun:
        fields = {**fields, "towers": str(home / "towers")}

    def made(world):
        return function(
            validate(cls, {**fields, "data": {"folder": {"root": str(world)}}, "out": str(tmp_path / "out")})
        )

    world = tmp_path / "world"
    shutil.copytree(home / "world", world)
    first = made(world)
    shutil.copytree(world, tmp_path / "moved")
    assert made(tmp_path / "moved") == first
    change(world)
    with pytest.raises(ArtifactError, match=r"different run \(inputs.data: '\w+' there, '\w+' now\)"):
        made(world)
