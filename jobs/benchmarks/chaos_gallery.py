"""Kills processes that write to a gallery, and counts what is lost, comes back or is answered wrongly.

    python jobs/benchmarks/chaos_gallery.py [moments=200] [writers=2] [seed=0]

Writers add, replace and delete images of their own, each noted before it is written and again once it is acknowledged;
one more process compacts. At random moments one of them that works again is killed (SIGKILL) and started anew. After
every kill a reader that follows, and every tenth time a new one too, must show of each image the last acknowledged
state or a later noted one, with the right vectors, and answer as a scan of them does.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import time
import zlib
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
from machine import machine
from pydantic import Field

from cirray.catalogue.change import Change
from cirray.catalogue.follower import Follower
from cirray.catalogue.snapshot import LiveGallery
from cirray.catalogue.table import Catalogue
from cirray.cli.main import guarded
from cirray.core.config import Config, load_config
from cirray.core.errors import StoreError
from cirray.core.log import say
from cirray.index.config import IndexBackend
from cirray.index.exact import ExactIndex
from cirray.index.store import IndexMeta

SHAPE = (2, 16)
IDS = 40
Step = tuple[int, bool]
"""Number of an image's change, and whether it deletes."""


class ChaosConfig(Config):
    """What is done."""

    moments: int = Field(200, ge=1)
    writers: int = Field(2, ge=1)
    longest_s: float = Field(0.2, gt=0)
    """Longest time between a process at work and its end."""
    seed: int = 0


def vectors(name: str, step: int) -> np.ndarray:
    """The vectors of an image after a change."""
    return np.random.default_rng(zlib.crc32(f"{name} {step}".encode())).normal(size=SHAPE).astype(np.float16)


def write(uri: str, log: str, number: int) -> None:
    """A writer: changes images of its own until it is killed."""
    rng, table = np.random.default_rng(time.time_ns()), Catalogue.open(uri)
    step = max((item for steps in read(log, "I").values() for item, _ in steps), default=0)
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while True:
        step += 1
        name, gone = f"{number}-{rng.integers(IDS)}", bool(rng.random() < 0.3)
        line = f"{name} {step} {int(gone)}\n".encode()
        os.write(stream, b"I " + line)
        table.write([Change(name) if gone else Change(name, vectors(name, step), content=str(step))])
        os.write(stream, b"A " + line)


def compact(uri: str) -> None:
    """The compactor."""
    table = Catalogue.open(uri)
    while True:
        try:
            table.compact(keep_s=0)
        except StoreError:
            pass
        time.sleep(0.05)


def read(log: str, kind: str) -> dict[str, list[Step]]:
    """The noted (`I`) or acknowledged (`A`) steps of every image, in order; a half-written last line is left out."""
    found: dict[str, list[Step]] = {}
    text = Path(log).read_text() if Path(log).exists() else ""
    for line in text[: text.rfind("\n") + 1].splitlines():
        mark, name, step, gone = line.split()
        if mark == kind:
            found.setdefault(name, []).append((int(step), gone == "1"))
    return found


def faults(gallery: LiveGallery, acknowledged: dict[str, list[Step]], noted: dict[str, list[Step]]) -> list[str]:
    """What a gallery shows that it may not."""
    found = []
    for name, steps in noted.items():
        last = acknowledged.get(name, [(0, True)])[-1]
        allowed = {step if not gone else 0 for step, gone in [last, *steps] if step >= last[0]}
        row = gallery.view.row(name)
        shown = 0
        if row is not None:
            rows, place = gallery.view.find(row)
            shown = int(rows.facts["content"][place].as_py())
            if not np.array_equal(rows.tokens_NQD[place], vectors(name, shown)):
                found.append(f"wrong vectors of {name}")
        if shown not in allowed:
            what = "is back" if not shown == 0 and allowed == {0} else "is lost or set back"
            found.append(f"{name} {what}: {shown} shown, {sorted(allowed)} allowed")
    return found + wrong_answers(gallery)


def wrong_answers(gallery: LiveGallery) -> list[str]:
    """Answers that differ from a scan of what the gallery shows."""
    if not len(gallery):
        return []
    places = [gallery.view.find(row) for row in range(len(gallery))]
    scan = ExactIndex(gallery.ids, np.stack([rows.tokens_NQD[place] for rows, place in places]))
    queries = np.random.default_rng(len(gallery)).normal(size=(4, SHAPE[1])).astype(np.float32)
    (names, scores), (wanted, best) = gallery.search_index.search(queries, 10), scan.search(queries, 10)
    return [] if names == wanted and np.array_equal(scores, best) else ["a wrong answer"]


class Chaos:
    """The processes, and the reader that follows."""

    def __init__(self, config: ChaosConfig, folder: str) -> None:
        """Make an empty gallery and start everything."""
        self.uri = f"{folder}/gallery"
        Catalogue.create(self.uri, SHAPE)
        self.logs = [f"{folder}/{number}.log" for number in range(config.writers)]
        self._began: dict[int, int] = {}
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["lancedb", "cirray.catalogue.follower", "cirray.cli.main"])
        self.processes = [self._start(number) for number in range(config.writers + 1)]
        self.follower = self.reader()

    def reader(self) -> Follower:
        """A reader that reads everything."""
        return Follower(self.uri, IndexMeta("chaos"), SHAPE, IndexBackend(), "chaos")

    def _start(self, number: int) -> BaseProcess:
        is_writer = number < len(self.logs)
        if is_writer:
            self._began[number] = self._size(number)
        work, args = (write, (self.uri, self.logs[number], number)) if is_writer else (compact, (self.uri,))
        process = self._context.Process(target=work, args=args, daemon=True)
        process.start()
        return process

    def wait(self, number: int) -> None:
        """Wait until a writer has written since it was started; the compactor works at once."""
        while number < len(self.logs) and self._size(number) <= self._began[number]:
            time.sleep(0.01)

    def _size(self, number: int) -> int:
        log = Path(self.logs[number])
        return log.stat().st_size if log.exists() else 0

    def kill(self, number: int, again: bool = True) -> None:
        """Kill a process and start it again."""
        process = self.processes[number]
        if process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        if again:
            self.processes[number] = self._start(number)

    def check(self, fresh: bool) -> list[str]:
        """What a reader shows that it may not; whatever is acknowledged before it looks must be there."""
        acknowledged = {name: steps for log in self.logs for name, steps in read(log, "A").items()}
        gallery = self.reader().gallery if fresh else self.follower.poll()
        noted = {name: steps for log in self.logs for name, steps in read(log, "I").items()}
        return faults(gallery, acknowledged, noted)


def run(config: ChaosConfig) -> int:
    """Kill at every moment; returns 1 for a fault."""
    rng, begin = np.random.default_rng(config.seed), time.perf_counter()
    found: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        chaos = Chaos(config, folder)
        for moment in range(config.moments):
            victim = int(rng.integers(len(chaos.processes)))
            chaos.wait(victim)
            time.sleep(rng.uniform(0, config.longest_s))
            chaos.kill(victim)
            found += chaos.check(False) + (chaos.check(True) if moment % 10 == 9 else [])
        for number in range(len(chaos.processes)):
            chaos.kill(number, again=False)
        found += chaos.check(False) + chaos.check(True)
        counts = [sum(len(steps) for log in chaos.logs for steps in read(log, kind).values()) for kind in "IA"]
        version = Catalogue.open(chaos.uri).version
    seconds = time.perf_counter() - begin
    say(f"{config.moments} kills in {seconds:.0f} s, {counts[0]:,} changes noted, {counts[1]:,} acknowledged, "
        f"{version:,} versions; {len(found)} faults; {machine()}")  # fmt: skip
    for fault in found[:20]:
        say(f"  {fault}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(guarded(lambda: run(load_config(ChaosConfig, None, sys.argv[1:]))))
