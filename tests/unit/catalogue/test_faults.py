"""A store that is full, read-only or away: writes are refused in words, reads go on, and nothing is damaged."""

import resource
import shutil
import subprocess
from pathlib import Path

import pytest
from living_gallery import SHAPE, World, vectors
from object_store import Moody, bucket, stub
from small_disk import small_disk

from cirray.catalogue.change import Change
from cirray.catalogue.table import Catalogue
from cirray.core.errors import RemadeError, StoreError


def refused(world, name="refused"):
    before = dict(world.truth)
    with pytest.raises(StoreError, match="cannot be written now"):
        world.put(name, picture=b"x" * 4_000_000, size=(1, 1))
    world.truth = before


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", 3) as place:
        yield place


def test_a_full_and_a_read_only_disk_refuse_writes_and_nothing_else(disk):
    world = World(disk / "gallery")
    world.put("a", "b")
    follower = world.follow()
    refused(world)
    world.check(follower.poll())
    world.check(world.follow().gallery)
    world.put("a", seed=1)
    world.drop("b")
    world.check(follower.poll())
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    refused(world)
    world.check(follower.poll())
    world.check(world.follow().gallery)


def test_a_process_that_may_write_no_more_is_refused_and_goes_on_reading(tmp_path):
    """For those who may mount nothing: the system refuses what goes beyond a limit, as a full disk does."""
    world = World(tmp_path / "gallery")
    world.put("a", "b")
    follower, (soft, hard) = world.follow(), resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (100_000, 100, 0):  # in a vectors' file, in the note of a version, and at once
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            refused(world)
            if not limit:
                with pytest.raises(StoreError, match="cannot be written now"):
                    world.table.write([Change("a")])
            world.check(follower.poll())
            world.check(world.follow().gallery)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        world.put("a", seed=limit)
        world.check(follower.poll())


def test_a_gallery_whose_folder_is_deleted_is_searched_as_it_was_and_takes_no_write(tmp_path):
    world = World(tmp_path / "gallery")
    world.put("a", "b")
    world.put("c")
    follower = world.follow()
    shutil.rmtree(world.uri)
    for act in (follower.poll, lambda: world.table.write([]), lambda: world.table.compact()):
        with pytest.raises(StoreError, match="cannot be (read|written) now: its table is not there any more"):
            act()
    refused(world)
    assert not (Path(world.uri) / "images.lance").exists()
    world.check(follower.gallery)


@pytest.mark.parametrize("seen", [True, False])
def test_a_gallery_that_is_made_again_is_never_mixed_with_the_former_one(tmp_path, seen):
    """Also where the new table has as many versions, and no look fell into the time between."""
    world = World(tmp_path / "gallery")
    world.put("a", "b", picture=b"old", size=(1, 1))
    follower = world.follow()
    follower.gallery.picture("a")
    shutil.rmtree(world.uri)
    if seen:
        with pytest.raises(StoreError, match="not there any more"):
            follower.poll()
    again = World(tmp_path / "gallery")
    again.put("d", "e", picture=b"new", size=(1, 1))
    for act in (follower.poll, lambda: world.table.write([Change("late", vectors(1))]), follower.poll):
        with pytest.raises(RemadeError, match="was made again. Open it anew"):
            act()
    world.check(follower.gallery)
    assert follower.gallery.picture("a") == b"old"
    try:
        assert follower.gallery.picture("b") == b"old"  # Lance may have its file open still
    except RemadeError:
        pass
    again.check(again.follow().gallery)


def test_an_object_store_holds_a_gallery_and_one_that_is_away_for_a_while_costs_only_the_writes(monkeypatch):
    server, address = stub(monkeypatch)
    bucket(address, "living")
    world = World(f"s3://living/gallery?endpoint_override={address}&scheme=http&region=us-east-1")
    world.put("a", "b", "c")
    follower = world.follow()
    world.drop("b")
    world.check(follower.poll())
    assert world.table.compact(keep_s=0) == 2
    world.check(follower.poll())
    server.stop()
    refused(world)
    with pytest.raises(StoreError, match="cannot be read now"):
        follower.poll()
    world.check(follower.gallery)
    again, _ = stub(monkeypatch, int(address.rpartition(":")[2]))  # the same, with what it held
    world.put("d")
    world.check(follower.poll())
    again.stop()


def test_a_stage_waits_for_a_store_where_a_service_would_refuse(monkeypatch):
    server, address = stub(monkeypatch)
    bucket(address, "waited")
    uri, moody = f"s3://waited/gallery?endpoint_override={address}&scheme=http&region=us-east-1", Moody(server)
    table = Catalogue.create(uri, SHAPE, patient=True)
    moody.away = 6
    table.write([Change("a", vectors(1))])
    assert moody.away <= 0
    moody.away = 1_000_000
    with pytest.raises(StoreError, match="cannot be read now"):
        Catalogue.open(uri)
    server.stop()
