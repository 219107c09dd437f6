"""Several writers, compactions and a reader at once: every acknowledged change is there, in the commits' order."""

import threading
from concurrent.futures import ThreadPoolExecutor

from living_gallery import World, vectors

from cirray.catalogue.change import Change
from cirray.catalogue.table import NUMBER, Catalogue

WRITERS, STEPS = 3, 12


def write(uri, writer, early):
    table = Catalogue.open(uri)
    for step in range(STEPS):
        if writer == 0 and step == STEPS // 2:
            early.wait(60)  # until the reader has seen a state before the last one, however slow the machine is
        shared = Change(f"shared {step % 3}", vectors(writer * 100 + step), content=f"{writer} {step}")
        own = Change(f"own {writer}", None if step % 5 == 3 else vectors(step), content=f"{step:02d}")
        table.write([shared, own])


def compact(uri, stop):
    table = Catalogue.open(uri)
    while not stop.wait(0.05):
        table.compact(keep_s=0)


def read(follower, stop, seen, early):
    ended = False
    while not ended:
        ended, gallery = stop.is_set(), follower.poll()
        if "own 0" in gallery:
            seen.append(contents(gallery)["own 0"])
            early.set()


def contents(gallery):
    found = (gallery.view.find(row) for row in range(len(gallery)))
    return dict(zip(gallery.ids, (rows.facts["content"][place].as_py() for rows, place in found), strict=True))


def test_writers_and_compactions_at_once_lose_nothing_and_a_reader_is_never_set_back(tmp_path):
    world = World(tmp_path / "gallery")
    follower, stop, early, seen = world.follow(), threading.Event(), threading.Event(), []
    with ThreadPoolExecutor(WRITERS + 2) as pool:
        beside = [pool.submit(compact, world.uri, stop), pool.submit(read, follower, stop, seen, early)]
        for done in [pool.submit(write, world.uri, writer, early) for writer in range(WRITERS)]:
            done.result()
        stop.set()
        for done in beside:
            done.result()
    rows = Catalogue.open(world.uri).since(0)
    by_number = sorted(zip(*(rows[name].to_pylist() for name in (NUMBER, "id", "content")), strict=True))
    last = {name: content for _, name, content in by_number if name}
    assert [last[f"own {writer}"] for writer in range(WRITERS)] == [f"{STEPS - 1:02d}"] * WRITERS and len(last) == 6
    assert contents(follower.poll()) == last == contents(world.follow().gallery)
    assert seen == sorted(seen) and len(set(seen)) > 1
