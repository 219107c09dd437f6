import hashlib
import json
from collections import Counter, defaultdict
from types import SimpleNamespace

import pytest

from cirray.core.errors import DataError
from cirray.core.unfinished import restarting
from cirray.data import writing
from cirray.data.config import ShapesConfig
from cirray.data.shapes.judge import judge, parse
from cirray.data.shapes.scenes import COLOURS, SHAPES, difference
from cirray.data.shapes.world import fresh_scene, read_scenes, write_world
from cirray.pipelines.data.config import WorldRun
from cirray.pipelines.data.world import run_world


def rows(root, name):
    return [json.loads(line) for line in (root / f"{name}.jsonl").read_text().splitlines()]


def digests(root):
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_config_writes_the_same_bytes(small_config, world, tmp_path):
    write_world(small_config, tmp_path / "again")
    assert digests(tmp_path / "again") == digests(world)
    write_world(small_config.model_copy(update={"seed": 4}), tmp_path / "other")
    assert digests(tmp_path / "other") != digests(world)


def test_every_image_has_a_scene_and_no_scene_occurs_twice(world):
    scenes = read_scenes(world)
    images = {path.stem for path in world.rglob("*.png")}
    assert set(scenes) == images and len(set(scenes.values())) == len(images) == 12 * 5 + 4 * 5 + 8 * 4 + 5 * 9


def test_every_written_text_is_exact(world):
    scenes = read_scenes(world)
    for row in rows(world, "triplets") + rows(world, "queries"):
        reference, target = scenes[row["reference"]], scenes[row["target"]]
        assert judge(row["modification"], reference, target).exact
        assert difference(reference, target).kind == row["edit"]


def test_labelled_families_with_a_smaller_budget_are_a_prefix(small_config, world, tmp_path):
    fewer = small_config.model_copy(update={"labelled_families": 6, "pool_families": 2})
    write_world(fewer, tmp_path / "half")
    whole, half = digests(world), digests(tmp_path / "half")
    assert all(whole[name] == digest for name, digest in half.items() if name.endswith(".png"))
    for name in ("triplets", "captions"):
        part = rows(tmp_path / "half", name)
        assert rows(world, name)[: len(part)] == part
    assert rows(tmp_path / "half", "queries") == rows(world, "queries")


def test_a_gallery_reference_has_eight_different_edits_of_itself(world):
    kinds = defaultdict(Counter)
    for row in rows(world, "queries"):
        kinds[row["reference"]][row["edit"]] += 1
    assert len(kinds) == 5
    for counter in kinds.values():
        assert counter.total() == 8 and len(counter) >= 5
    ids = {path.stem for path in (world / "gallery").iterdir()}
    assert len(ids) == 45 and all(row["target"] in ids and row["reference"] in ids for row in rows(world, "queries"))


def test_held_out_families_are_split_val_and_carry_no_caption(world):
    splits = Counter(row["split"] for row in rows(world, "triplets"))
    assert splits == {"train": 48, "val": 16}
    assert all(row["image"].startswith("lab-") for row in rows(world, "captions"))
    assert len(rows(world, "captions")) == 60


def test_the_pool_has_no_text_but_single_edit_pairs(world):
    scenes = read_scenes(world)
    texts = (world / "triplets.jsonl").read_text() + (world / "captions.jsonl").read_text()
    assert "pool-" not in texts
    assert all(difference(scenes[f"pool-00002-{n}"], scenes["pool-00002-0"]) for n in (1, 2, 3))


def test_reverse_texts_are_written_on_demand_and_change_nothing_else(small_config, world, tmp_path):
    write_world(small_config.model_copy(update={"reverse_texts": True}), tmp_path / "w")
    scenes, with_reverse = read_scenes(world), rows(tmp_path / "w", "triplets")
    for row in with_reverse:
        assert judge(row["reverse_modification"], scenes[row["target"]], scenes[row["reference"]]).exact
    stripped = [{k: v for k, v in row.items() if k != "reverse_modification"} for row in with_reverse]
    assert stripped == rows(world, "triplets") and rows(tmp_path / "w", "captions") == rows(world, "captions")


def test_fresh_scenes_are_none_of_the_worlds(world, rng):
    forbidden = frozenset(read_scenes(world).values())
    assert len(forbidden) == len(read_scenes(world))
    assert all(fresh_scene(rng, forbidden, max_objects=2) not in forbidden for _ in range(50))


def test_no_world_holds_a_scene_reserved_for_pretraining(world):
    assert not any(scene.reserved for scene in read_scenes(world).values())


def test_a_finished_world_is_left_alone_and_another_one_is_refused(small_config, world):
    before = {path: path.stat().st_mtime_ns for path in world.rglob("*")}
    assert write_world(small_config, world)["counts"]["images"] == 157
    assert before == {path: path.stat().st_mtime_ns for path in world.rglob("*")}
    with pytest.raises(DataError, match="already holds another data set"):
        write_world(ShapesConfig(seed=9), world)


def test_someone_elses_files_are_not_overwritten(small_config, tmp_path):
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="'pool'"):
        write_world(small_config, tmp_path)
    assert (tmp_path / "pool" / "mine.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pool"]


def test_a_run_killed_while_drawing_or_moving_is_finished_by_the_next(small_config, world, tmp_path, monkeypatch):
    out = tmp_path / "w"

    def stop(done, total):
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_world(small_config, out, stop)
    assert list(tmp_path.iterdir()) == []
    assert not (out / "dataset.json").exists()
    real, moved = writing.os.replace, []

    def replace(source, target):
        if len(moved) == 3:
            raise KeyboardInterrupt
        moved.append(target)
        real(source, target)

    monkeypatch.setattr(writing.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        write_world(small_config, out)
    assert not (out / "dataset.json").exists() and len(list(out.iterdir())) == 2
    monkeypatch.undo()
    write_world(small_config, out)
    assert digests(out) == digests(world) and not out.with_name("w.partial").exists()


@pytest.mark.parametrize("restart", [False, True])
def test_a_stage_interrupted_while_files_move_is_whole_after_the_next_start(
    small_config, world, tmp_path, monkeypatch, restart
):
    """Also when what had moved already is thrown away."""
    run, real, moved = WorldRun(shapes=small_config, out=str(tmp_path / "w")), writing.os.replace, []

    def replace(source, target):
        if len(moved) == 3:
            raise KeyboardInterrupt
        moved.append(target)
        real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(writing, "os", SimpleNamespace(replace=replace))
        with pytest.raises(KeyboardInterrupt):
            run_world(run)
    with restarting(restart):
        run_world(run)
    names = {path.name for path in (tmp_path / "w").iterdir()} - {"manifest.json", "stage.json"}
    assert names == {path.name for path in world.iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_progress_counts_every_image(small_config, tmp_path):
    seen = []
    write_world(small_config, tmp_path / "w", lambda done, total: seen.append((done, total)))
    assert seen[-1] == (157, 157) and [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_a_folder_without_scenes_cannot_be_judged(tmp_path):
    with pytest.raises(DataError, match=r"scenes\.jsonl"):
        read_scenes(tmp_path)
    (tmp_path / "scenes.jsonl").write_text('{"image": "a"}\n')
    with pytest.raises(DataError, match="not a scene table"):
        read_scenes(tmp_path)


def test_vague_texts_name_objects_by_shape_alone_and_leave_scenes_and_images_as_they_are(small_config, world, tmp_path):
    write_world(small_config.model_copy(update={"vague": 1.0}), tmp_path / "vague")
    scenes, shapes, ambiguous = read_scenes(tmp_path / "vague"), 0, 0
    assert scenes == read_scenes(world)
    for row in rows(tmp_path / "vague", "triplets") + rows(tmp_path / "vague", "queries"):
        instruction = parse(row["modification"])
        if instruction.kind == "add":
            continue
        assert all(name.shape and not name.place and not name.colour for name in instruction.names)
        meant = [len(name.cells(scenes[row["reference"]])) for name in instruction.names]
        shapes, ambiguous = shapes + 1, ambiguous + (max(meant) > 1)
        exact = judge(row["modification"], scenes[row["reference"]], scenes[row["target"]]).exact
        assert exact == (max(meant) == 1)
    assert 0.1 < ambiguous / shapes < 0.7


def test_clutter_changes_every_image_and_no_text(small_config, world, tmp_path):
    write_world(small_config.model_copy(update={"clutter": 12}), tmp_path / "cluttered")
    before, after = digests(world), digests(tmp_path / "cluttered")
    pictures = [name for name in before if name.endswith(".png")]
    assert all(before[name] != after[name] for name in pictures)
    assert {name: before[name] for name in before if name.endswith(".jsonl")} == {
        name: after[name] for name in after if name.endswith(".jsonl")
    }


def test_fewer_colours_and_shapes_are_those_first_named_everywhere(small_config, tmp_path):
    write_world(small_config.model_copy(update={"colours": 3, "shapes": 2}), tmp_path / "plain")
    things = [thing for scene in read_scenes(tmp_path / "plain").values() for thing in scene.cells if thing is not None]
    assert {thing.colour for thing in things} == set(COLOURS[:3])
    assert {thing.shape for thing in things} == set(SHAPES[:2])
    scenes = read_scenes(tmp_path / "plain")
    for row in rows(tmp_path / "plain", "queries"):
        assert judge(row["modification"], scenes[row["reference"]], scenes[row["target"]]).exact
