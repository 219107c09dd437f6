"""How long commands take to start: import, help, and the first answer of a search, here and through a service.

    python jobs/benchmarks/bench_start.py [repeats=5] [root=DIR] [id=GALLERY_ID]

The search uses `@checkpoint` and `@index` below `root` (`make demo` writes them); the service runs in this process,
without Ray. Commands are run in turns, each in a process of its own; the best wall time and processor time are shown,
and what a search takes over importing torch and transformers alone.
"""

import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from machine import machine
from pydantic import Field

from cirray.cli.main import guarded
from cirray.core.config import load_config
from cirray.core.errors import StageError
from cirray.core.fields import Effort, Place
from cirray.core.log import say
from cirray.core.places import Run
from cirray.search_engine import SearchEngine
from cirray.serving.api import make_api
from cirray.serving.config import ServeArgs, ServingSettings
from cirray.serving.service import DirectService

BARE = "import torch; from transformers import PreTrainedModel, PreTrainedTokenizerFast"
"""What any model of transformers demands, whoever loads it."""


class BenchConfig(Run):
    """What is measured."""

    checkpoint: Place = "@checkpoint"
    index: Place = "@index"
    id: str = ""
    """Gallery image of the query; empty: the first."""
    text: str = "make it red"
    repeats: Effort[int] = Field(5, ge=1)
    """Runs of each command."""


def measure(config: BenchConfig) -> None:
    """Run the commands in turns and print a table."""
    engine = SearchEngine.open(config.checkpoint, config.index)
    with serving(engine) as url, tempfile.TemporaryDirectory() as folder:
        commands = commands_of(config, config.id or engine.gallery.ids[0], url, folder)
        best = {name: (float("inf"), float("inf")) for name in commands}
        for _ in range(config.repeats):
            for name, command in commands.items():
                wall, busy = timed(command)
                best[name] = (min(best[name][0], wall), min(best[name][1], busy))
    say(f"{machine()}; best of {config.repeats}")
    for name, (wall, busy) in best.items():
        say(f"{name:<36}{wall:7.2f} s  {busy:6.2f} s of processor time")
    over = best["cirray search"][1] / best["import torch, transformers"][1]
    say(f"a search takes {over:.2f} times the processor time of the imports alone")


def commands_of(config: BenchConfig, image: str, url: str, folder: str) -> dict[str, list[str]]:
    """Name -> command."""
    cirray = [sys.executable, "-m", "cirray"]
    query = [*cirray, "search", f"id={image}", f"text={config.text}", f"out={Path(folder, 'page.html')}"]
    return {
        "import cirray": [sys.executable, "-c", "import cirray"],
        "cirray --help": [*cirray, "--help"],
        "cirray finetune --help": [*cirray, "finetune", "--help"],
        "import torch, transformers": [sys.executable, "-c", BARE],
        "cirray search": [*query, f"checkpoint={config.checkpoint}", f"index={config.index}"],
        "cirray search --url": [*query, f"url={url}"],
    }


def timed(command: Sequence[str]) -> tuple[float, float]:
    """Wall time and processor time (user and system) of a command in seconds.

    Raises:
        StageError: with what the command says, when it fails.
    """
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise StageError(f"{' '.join(command[1:4])} failed: {done.stderr.strip()[-300:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@contextmanager
def serving(engine: SearchEngine) -> Iterator[str]:
    """The service of an index on a free port; its address."""
    service = DirectService(engine, ServingSettings())
    server = uvicorn.Server(uvicorn.Config(make_api(lambda: service, ServeArgs()), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


if __name__ == "__main__":
    sys.exit(guarded(lambda: measure(load_config(BenchConfig, None, sys.argv[1:]))))
