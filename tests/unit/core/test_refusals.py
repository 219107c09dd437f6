"""Disks and stores that refuse: a store that is away for a while is waited for, the rest is one sentence."""

import copy
import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from made_artifacts import stage_of
from object_store import Moody, bucket, stub
from safetensors.torch import save_file

from cirray.cli.main import main
from cirray.core import storage, written
from cirray.core.artifacts import read_manifest
from cirray.core.contents import directory_digest
from cirray.core.errors import ConfigError, StoreError
from cirray.core.patient import tries
from cirray.core.unfinished import stage_function
from cirray.data.config import ImageLimits
from cirray.data.places import Place
from cirray.pipelines.cluster.streaming import GuardedWorker, Step
from cirray.pipelines.data.datasets import contents_of
from cirray.pipelines.features.actors import decode_images

FOREVER = 1_000_000


@pytest.fixture(scope="module")
def stores():
    """A server that may answer 503, and a function from a name to a URI on it. Patience is short here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIRRAY_STORE_PATIENCE_S", "0.3")
        server, address = stub(patch)
        bucket(address, "chaos")
        yield Moody(server), lambda name: f"s3://chaos/{name}?endpoint_override={address}&scheme=http&region=us-east-1"
        server.stop()


@pytest.fixture
def store(stores, tmp_path, monkeypatch):
    monkeypatch.setenv("CIRRAY_CACHE", str(tmp_path / "cache"))
    yield stores
    stores[0].away = 0


def test_a_store_that_answers_503_for_a_while_is_waited_for(store, tmp_path):
    moody, place = store
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_bytes(b"x" * 100)
    steps = [
        lambda: storage.write_bytes(place("w/b"), b"b"), lambda: storage.upload_folder(tmp_path / "folder", place("w")),
        lambda: storage.list_files(place("w")), lambda: storage.exists(place("w/b")),
        lambda: storage.read_bytes(place("w/a")), lambda: directory_digest(place("w")),
        lambda: storage.download_folder(place("w"), tmp_path / "back"), lambda: storage.remove(place("w/b")),
        lambda: copy.deepcopy(storage.resolve(place("w"))[0]).get_file_info("chaos/w/a"),  # as pickle does it
    ]  # fmt: skip
    for step in steps:
        moody.away = 3
        step()
        assert moody.away <= 0
    assert storage.list_files(place("w")) == ["a"] and (tmp_path / "back" / "a").read_bytes() == b"x" * 100


def test_patience_is_told_in_seconds_and_half_a_minute_is_within_it(monkeypatch):
    waits = [0.025 * 2**n for n in range(1, tries(50))]
    assert 30 < sum(waits) < 60
    monkeypatch.setenv("CIRRAY_STORE_PATIENCE_S", "long")
    with pytest.raises(ConfigError, match="CIRRAY_STORE_PATIENCE_S is 'long'; a number of seconds is needed"):
        storage.resolve("s3://bucket/x?region=us-east-1")


def test_a_store_that_stays_away_is_one_sentence_for_a_stage_that_reads(store):
    moody, place = store
    moody.away = FOREVER
    for ask in (read_manifest, storage.list_files, storage.read_bytes, directory_digest, storage.remove):
        with pytest.raises(
            StoreError, match=r"^'s3://.* cannot be .*(SLOW_DOWN|HTTP status 503).*Wait until the store answers"
        ):
            ask(place("thing"))


def test_a_stage_whose_store_is_away_when_it_publishes_does_its_work_once(store):
    moody, place = store
    worked = []

    @stage_function
    def run(away):
        stage = stage_of(place("published"), "thing", {})
        if stage.finished:
            return stage.finished
        worked.append(away)
        (stage.local / "rows").write_bytes(b"x" * 1000)
        storage.write_bytes(storage.join(stage.work_uri, "data/part-0"), b"part")
        moody.away = away
        return stage.publish({"rows": 1})

    with pytest.raises(StoreError, match="Wait until the store answers, then run the same command"):
        run(FOREVER)
    moody.away = 0
    assert not storage.exists(place("published/manifest.json"))
    manifest = run(0)
    assert worked == [FOREVER] and manifest == read_manifest(place("published"))
    assert manifest.digest == directory_digest(place("published"))
    storage.remove(place("published"))
    assert run(0).digest == manifest.digest and worked == [FOREVER, 0]


def test_an_upload_that_was_cut_off_is_not_finished_where_its_place_was_deleted(store, monkeypatch):
    _, place = store
    stage = stage_of(place("other"), "thing", {})
    storage.write_bytes(storage.join(stage.work_uri, "data/part-0"), b"part")
    (stage.local / "rows").write_bytes(b"x")
    with monkeypatch.context() as patch:
        patch.setattr(storage, "upload_folder", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            stage.publish({})
    storage.remove(place("other"))
    again = stage_of(place("other"), "thing", {})
    assert again.finished is None and not list(again.local.iterdir())


def test_parts_are_digested_while_they_are_written_and_not_read_back(store, monkeypatch):
    _, place = store
    stage, worker = stage_of(place("parts"), "thing", {}), GuardedWorker(Step(lambda columns: write(columns)))

    def write(columns):
        storage.write_bytes(storage.join(stage.work_uri, "data/part-0"), b"x" * 100)
        return {"asked": 1}

    told = worker({"part": np.zeros(1, np.int64), "part_rows": np.ones(1, np.int64)})
    noted = json.loads(told["cirray_written"][0])
    assert storage.join(stage.uri, "data/part-0") in noted and not written.hand_over()
    written.learn(noted)
    with monkeypatch.context() as patch:
        patch.setattr("cirray.core.contents.file_digest", lambda uri: pytest.fail(f"{uri} was read back"))
        digest = stage.publish({}).digest
    assert digest == directory_digest(place("parts"))


STUCK = """
from pathlib import Path
import sys
from cirray.cli.main import guarded
from cirray.core import storage

def work():
    print("asks", flush=True)
    storage.upload_folder(Path(sys.argv[2]), sys.argv[1]) if sys.argv[2:] else storage.read_bytes(sys.argv[1])

sys.exit(guarded(work))
"""


@pytest.mark.parametrize(("number", "copies"), [(signal.SIGINT, False), (signal.SIGTERM, True)])
def test_a_process_that_waits_for_a_store_ends_at_once_when_it_is_told_to(number, copies, store, tmp_path):
    moody, place = store
    moody.away = FOREVER
    (tmp_path / "a").write_bytes(b"x")
    command = [sys.executable, "-c", STUCK, place("thing"), *([str(tmp_path)] if copies else [])]
    patience = {**os.environ, "CIRRAY_STORE_PATIENCE_S": "200"}
    asking = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=patience)
    try:
        assert asking.stdout.readline() == "asks\n"
        end = time.monotonic() + 30
        while moody.away > FOREVER - 8 and time.monotonic() < end:  # the next try is seconds away
            time.sleep(0.02)
        begin = time.monotonic()
        asking.send_signal(number)
        said = asking.communicate(timeout=60)[1]
    finally:
        asking.kill()
    assert time.monotonic() - begin < 8
    assert asking.returncode == 128 + number and len(said.splitlines()) == 1 and "nothing half-done" in said


def test_an_actor_whose_store_is_away_says_so_and_is_not_a_crash(store):
    moody, place = store
    moody.away = FOREVER
    worker = GuardedWorker(Step(lambda columns: storage.write_bytes(place("part"), b"x")))
    told = worker({"part": np.zeros(1, np.int64), "part_rows": np.ones(1, np.int64)})
    assert told["cirray_failure_kind"].tolist() == ["StoreError"]


def test_a_picture_is_not_broken_because_its_store_is_away(store):
    """Else an index would leave out what it could not read for half a minute."""
    moody, place = store
    moody.away = FOREVER
    columns = {"image_id": np.array(["a"], object), "place": np.array([Place(place("a.png")).text()], object)}
    for ask in (lambda: decode_images(columns, {"size": 16}, {}), lambda: contents_of(columns["place"], ImageLimits())):
        with pytest.raises(StoreError, match="a.* cannot be read"):
            ask()
    moody.away = 0
    assert "cannot be read" in decode_images(columns, {"size": 16}, {})["error"][0]


WAYS = {
    "bytes": lambda folder: storage.write_bytes(folder / "a", b"x" * 100_000),
    "text": lambda folder: (folder / "a").write_text("x" * 100_000),
    "torch": lambda folder: torch.save(torch.zeros(100_000), folder / "a"),
    "safetensors": lambda folder: save_file({"a": torch.zeros(100_000)}, str(folder / "a")),
    "numpy": lambda folder: np.save(folder / "a.npy", np.zeros(100_000)),
    "copy": lambda folder: storage.upload_folder(folder.parent / "big", folder),
}


@pytest.fixture
def full():
    """The system refuses what goes beyond a limit, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("way", WAYS)
def test_a_stage_that_can_write_no_more_says_so_in_one_sentence(way, tmp_path, full):
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "a").write_bytes(b"x" * 100_000)

    @stage_function
    def run():
        stage = stage_of(str(tmp_path / "out"), "thing", {})
        full()
        WAYS[way](stage.local)

    with pytest.raises(StoreError, match="out.*then run the same command again; what was finished is kept"):
        run()
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


@pytest.fixture
def closed(tmp_path):
    """A folder that this process may not write to, also where root runs the tests."""
    (tmp_path / "closed").mkdir(mode=0o555)
    tmp_path.chmod(0o755)
    if os.geteuid():
        yield tmp_path / "closed"
        return
    os.seteuid(65_534)
    yield tmp_path / "closed"
    os.seteuid(0)


def test_a_verb_that_may_not_write_there_says_so_in_one_sentence(closed, capsys):
    sizes = [f"shapes.{name}_families=1" for name in ("labelled", "heldout", "pool")]
    for out in (closed / "world", closed / "deep" / "world"):
        assert main(["world", *sizes, f"out={out}"]) == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert "closed" in told and "Permission denied" in told and "Give this user the right to it" in told
