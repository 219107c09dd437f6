"""Small files become few, large ones stay as they are, and what the table says does not change."""

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from living_gallery import World

from cirray.catalogue import merging
from cirray.catalogue.merging import NUMBER, now_ms, outdated
from cirray.catalogue.table import Catalogue


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(merging, "_SIZES", (64, 16))
    monkeypatch.setattr(merging, "_MANY", 4)
    world = World(tmp_path / "gallery")
    world.put(*(f"first {number:03d}" for number in range(100)))
    return world


def files(world):
    """Files and rows of every fragment."""
    world.table.refresh()
    found = world.table._table.get_fragments()
    return [(part.data_files()[0].path, part.count_rows()) for part in found]


def numbers(world):
    rows = Catalogue.open(world.uri).since(0).sort_by(NUMBER)
    return list(zip(rows[NUMBER].to_pylist(), rows["id"].to_pylist(), strict=True))


@pytest.mark.parametrize("act", [Catalogue.merge, Catalogue.compact])
def test_a_large_file_is_not_written_again_for_a_few_new_rows(world, act):
    large, follower = files(world)[0], world.follow()
    for number in range(10):
        world.put(f"new {number}")
    before = numbers(world)
    act(world.table)
    assert [rows for _, rows in files(world)] == [100, 10] and files(world)[0] == large
    assert numbers(world) == before
    world.check(follower.poll())


@pytest.mark.parametrize("act", [Catalogue.merge, Catalogue.compact])
def test_a_merge_that_another_overtakes_leaves_it_to_that_one(world, act, monkeypatch):
    for number in range(10):
        world.put(f"new {number}")
    before, merged = numbers(world), merging._merged

    def overtaken(task, dataset):
        monkeypatch.setattr(merging, "_merged", merged)
        Catalogue.open(world.uri).merge()
        return merged(task, dataset)

    monkeypatch.setattr(merging, "_merged", overtaken)
    act(world.table)
    assert merging._merged is merged and [rows for _, rows in files(world)] == [100, 10]
    assert numbers(world) == before
    world.put("one more")
    assert len(numbers(world)) == len(before) + 1


def test_many_middling_files_become_one_and_few_are_left(world):
    for group in range(3):
        world.put(*(f"{group} {number}" for number in range(20)))
    world.table.merge()
    assert [rows for _, rows in files(world)] == [100, 20, 20, 20]
    world.put(*(f"3 {number}" for number in range(20)))
    world.table.merge()
    assert [rows for _, rows in files(world)] == [100, 80]


def test_whoever_writes_a_lot_merges_on_the_way(world, monkeypatch):
    monkeypatch.setattr("cirray.catalogue.table.MERGE_EVERY", 8)
    writer = Catalogue.open(world.uri)
    for number in range(20):
        writer.load(writer_changes(world, f"new {number}"))
    assert len(files(world)) < 15  # of 41 commits
    world.check(world.follow().gallery)


def test_what_a_commit_writes_does_not_grow_with_merged_images(world):
    """Lance would keep the versions that each row came and was changed with, and write them again with every commit."""
    sizes = []
    for group in range(4):
        for number in range(12):
            world.put(f"{group} {number}")
        world.table.merge()
        world.put(f"{group} last")
        sizes.append(max(versions(world), key=lambda path: path.stat().st_mtime_ns).stat().st_size)
    assert max(sizes) - min(sizes) < 300  # it was 22 bytes an image
    world.check(world.follow().gallery)


def versions(world):
    return (Path(world.uri) / "images.lance" / "_versions").glob("*.manifest")


def writer_changes(world, name):
    world.put(name)
    return [world.truth[name]]


def test_old_versions_go_with_a_merge_that_cleans(world, monkeypatch):
    monkeypatch.setattr(merging, "_OLD", merging.timedelta(0))
    for number in range(4):
        world.put(f"new {number}")
    world.table.merge()
    assert len(list(versions(world))) > 4
    world.table.merge(clean=True)
    assert len(list(versions(world))) == 1
    world.check(world.follow().gallery)


def test_a_reading_whose_files_are_deleted_under_it_begins_again(world, monkeypatch):
    follower, scanned, lost = world.follow(), Catalogue._scanned, [True]
    world.put(*(f"new {number}" for number in range(5_000)))  # too many to be taken by their numbers

    def scan(self, *args):
        if lost and lost.pop():
            raise RuntimeError("Not found: data/1.lance")
        return scanned(self, *args)

    monkeypatch.setattr(Catalogue, "_scanned", scan)
    world.check(follower.poll())


@pytest.mark.parametrize("seed", range(3))
def test_rows_are_outdated_as_one_pass_over_them_says(seed):
    rng, now = np.random.default_rng(seed), now_ms()
    table = pa.table({
        "id": [f"{'' if number == 0 else number}" for number in rng.integers(0, 30, 200)],
        "gone": rng.random(200) < 0.3,
        "purged": pa.nulls(200, pa.int64()),
        "at": now - rng.integers(0, 20_000, 200),
        NUMBER: rng.permutation(1_000)[:200].astype(np.uint64),
    })  # fmt: skip
    newest, dropped = {}, set()
    for row in table.sort_by(NUMBER).to_pylist():
        if row["id"] in newest and row["at"] <= now - 10_000:
            dropped.add(newest[row["id"]][NUMBER])
        newest[row["id"]] = row
    notes = {row[NUMBER] for name, row in newest.items() if name and row["gone"] and row["at"] <= now - 10_000}
    found = [set(part.tolist()) for part in outdated(table, 10.0)]
    assert found == [dropped, notes] and dropped and notes
    assert [len(part) for part in outdated(table.slice(0, 0), 0.0)] == [0, 0]


def test_a_follower_that_is_hurried_without_end_rests_most_of_the_time(world, monkeypatch):
    follower, looks = world.follow(), []
    monkeypatch.setattr(follower, "poll", lambda: (looks.append(time.monotonic()), time.sleep(0.01), follower.hurry()))
    follower.start()
    time.sleep(1.2)
    follower.stop()
    assert 1 <= len(looks) <= 3  # half a second after each
