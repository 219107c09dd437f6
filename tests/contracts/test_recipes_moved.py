"""Recipes became fewer, with hardware as overlays: each of the 242 there were resolves to the same training as before.

`tests/golden/recipes_before.json.gz` holds what each old file resolved to; `recipes_moved.txt` says for each what is
given now: recipe, overlays, assignments. A leaf that differs on purpose is named below, and so is every field with
another name. Neither file is ever written anew.
"""

import gzip
import json
import runpy
from pathlib import Path

import pytest

from cirray.cli.study import find
from cirray.core.config import given, validate
from cirray.core.places import HOME
from cirray.core.trees import leaves
from cirray.data.presets import PRESETS
from cirray.pipelines.study.config import StudyRun
from cirray.pipelines.study.run import study_nodes

TESTS = Path(__file__).resolve().parents[1]
FIELDS = runpy.run_path(str(TESTS / "fixtures" / "recipe_fields.py"))
FILES = runpy.run_path(str(TESTS / "fixtures" / "recipe_files.py"))
BEFORE = json.loads(gzip.decompress((TESTS / "golden" / "recipes_before.json.gz").read_bytes()))
MOVED = dict(line.split(": ", 1) for line in (TESTS / "golden" / "recipes_moved.txt").read_text().splitlines())

STUDY, IN_STAGES = "compare-shapes-small-cpu.yaml", ("templates", "stages", "data", "judge")
RENAMED: dict[str, str] = {
    "space.training.lambda_m": "space.training.terms.rtc.weight",
    "space.training.lambda_p": "space.training.terms.two_hop.weight",
}
"""Old dotted path, or the beginning of one up to a dot -> the new."""
ON_PURPOSE: dict[str, tuple[str, ...]] = {
    # trainings keep a checkpoint every few minutes and take large scores in tiles; recipes of papers say the frame that
    # was the only one
    "": (
        "training.chunk",
        "base.training.chunk",
        "training.checkpoint_every",
        "alignment_training.checkpoint_every",
        "language_training.checkpoint_every",
        "base.training.checkpoint_every",
        "generator.settings.frame",
    ),  # fmt: skip
    "pretrain": ("encoder.settings.patch_input",),  # was never read
    "finetune": ("encoder.settings.patch_input",),
    # smaller parts, so that the bar moves on a few hundred pictures, and batches that threads share
    "index": ("shard", "batch"),
    "check": ("device",),  # a pool's actors say where they work
    "embed-c": ("data.preset",),  # embedding reads images: no text, no protocol
    "embed-fashioniq": ("data.preset", "data.fashioniq.train_captions"),
    "compare-shapes": ("table.labelled only.index",),  # is asked in every shape of query since
    # eight GPUs have one overlay for both modes; `alignment: none` leaves the first stage out in this one
    "generator-cirr-vdg-improved": ("alignment_training.engine", "alignment_training.zero_stage"),
    "generator-fashioniq-vdg-improved": ("alignment_training.engine", "alignment_training.zero_stage"),
}
"""Beginning of an old file's name -> leaves that differ on purpose."""


def renamed(path):
    """An old leaf's path as it is called now."""
    found = [old for old in RENAMED if f"{path}.".startswith(f"{old}.")]
    return RENAMED[max(found, key=len)] + path[len(max(found, key=len)) :] if found else path


def now(words):
    """What the words of a line of `recipes_moved.txt` resolve to."""
    recipe, *rest = words.split()
    overlays = tuple(word.removesuffix(".yaml").partition("/")[2] for word in rest if word.endswith(".yaml"))
    assignments = tuple(word for word in rest if not word.endswith(".yaml"))
    return FILES["config_of"](recipe.removesuffix(".yaml"), overlays, assignments)


def from_preset(path, after):
    """Whether a leaf has the value of its preset, which was filled in when data was read, and now when it resolves."""
    *start, section, field = path.rsplit(".", 2)
    preset = after.get(".".join([*start, "preset"]))
    return bool(preset) and PRESETS[preset].get(section, {}).get(field) == after[path]


def is_default(value, root):
    """A class's default place as it is now: in the run's own root, where it was in the quickstart's."""
    if isinstance(value, list):
        return [is_default(item, root) for item in value]
    if isinstance(value, dict):
        return {name: is_default(item, root) for name, item in value.items()}
    return value.replace(HOME, root) if isinstance(value, str) else value


def known_to(old, new):
    """`new` without the fields that `old` does not know."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {name: known_to(old[name], value) for name, value in new.items() if name in old}
    if isinstance(old, list) and isinstance(new, list):
        return [known_to(*pair) for pair in zip(old, new, strict=True)]
    return new


def differing(name):
    """Leaves of an old recipe that are others now, but for those that differ on purpose."""
    config = now(MOVED[name])
    old, new = FIELDS["converted"](BEFORE[name]), config.to_dict()
    if name == STUDY:  # studies have more fields since, in lists too; their stages say only what differs from defaults
        new = known_to(old, new)
        old, new = ({key: value for key, value in tree.items() if key not in IN_STAGES} for tree in (old, new))
    new = {key: known_to(old[key], value) if isinstance(old.get(key), list) else value for key, value in new.items()}
    before, after = {renamed(path): value for path, value in leaves(old).items()}, leaves(new)
    allowed = {leaf for start, found in ON_PURPOSE.items() if name.startswith(start) for leaf in found}
    found = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    found -= {path for path in found if path in after and "." in path and from_preset(path, after)}
    found -= {path for path in found - before.keys() if not given(config, path)}  # a field that is new since
    found -= {path for path in found & before.keys() if is_default(before[path], new["root"]) == after.get(path)}
    return {path: (before.get(path), after.get(path)) for path in found - allowed - {"root", "base.root"}}


def stages_of(tree):
    """What every stage of a study, over all its seeds and curves, resolves to."""
    run = validate(StudyRun, {name: value for name, value in tree.items() if name in StudyRun.model_fields})
    return {node.name: leaves(node.config.to_dict()) for node in study_nodes(run, find)}


def test_every_stage_of_the_study_resolves_to_what_it_resolved_to():
    new = now(MOVED[STUDY]).to_dict()
    before = stages_of({**FIELDS["converted"](BEFORE[STUDY]), "root": new["root"]})
    after, score = stages_of(new), list(before)[-1]
    del after["labelled_index"]  # its row is asked in every shape of query since
    assert after[score]["row_shapes.labelled only"].endswith("/labelled_index") and after[score]["judge"]
    for tree in (before[score], after[score]):
        for leaf in [name for name in tree if name.startswith(("judge", "row_shapes"))]:
            del tree[leaf]
    assert len(before) == 72 and after == before


@pytest.mark.parametrize("name", BEFORE)
def test_what_a_recipe_resolved_to_it_resolves_to_with_its_overlays(name):
    assert differing(name) == {}


def test_the_comparison_sees_one_value_that_changed(monkeypatch):
    monkeypatch.setitem(MOVED, "finetune-cirr-sprc-blip2-8gpu.yaml", MOVED["finetune-cirr-sprc-blip2-h200.yaml"])
    assert differing("finetune-cirr-sprc-blip2-8gpu.yaml") == {
        "ray.num_workers": (8, 1),
        "training.engine": ("deepspeed", "torch"),
    }


def test_every_old_recipe_and_every_new_one_stands_in_the_table():
    assert list(BEFORE) == list(MOVED) and len(BEFORE) == 242
    told = {word for words in MOVED.values() for word in words.split() if word.endswith(".yaml")}
    assert told <= {str(path.relative_to(FILES["ROOT"])) for path in FILES["ROOT"].rglob("*.yaml")}
