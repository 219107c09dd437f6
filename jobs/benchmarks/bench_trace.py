"""The way from `cirray pretrain` to the first optimiser step: files, functions and lines of the package that it enters.

    python jobs/benchmarks/bench_trace.py [show=true] [folder=DIR]

A small world, features and triplets are made once in `folder`. Then the recipe `jobs/configs/shapes/pretrain.yaml` is
followed by a profile: in this process (torch engine), and with Ray the driver up to the start of its workers, and a
worker from its first call to the step.
"""

import inspect
import multiprocessing
import pickle
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import cirray
from cirray.cli.main import guarded, main
from cirray.core.artifacts import is_complete, open_stage
from cirray.core.config import Config, load_config
from cirray.core.errors import ConfigError
from cirray.core.fields import Place
from cirray.core.log import say
from cirray.core.places import Run
from cirray.data.config import DataConfig
from cirray.data.readers import read_dataset
from cirray.pipelines.training import retriever_ray
from cirray.triplets.schema import rejected_table, triplet_table
from cirray.triplets.store import KIND, write_part

PACKAGE = str(Path(cirray.__file__).parent)
RECIPE = str(Path(__file__).parents[1] / "configs" / "shapes" / "pretrain.yaml")
"""Where the way ends: an engine's step, Ray's start, the worker's loop."""
STEP, START, SHARE = "TorchEngine.step", "fit_on_ray", "train_share"
SETTINGS = "settings.pickle"


class TraceConfig(Config):
    """What is followed."""

    folder: str = ""
    """Folder for the small artifacts; empty: one that is removed."""
    show: bool = False
    """Print every function."""


class Reached(BaseException):
    """The end of the way; no handler of errors catches it."""


class Way:
    """Functions of the package that were entered while it was open."""

    def __init__(self, end: str, caught: Callable[[FrameType], None] = lambda frame: None) -> None:
        """Take the qualified name of the function that ends it."""
        self.codes, self._end, self._caught = dict[CodeType, None](), end, caught

    def follow(self, work: Callable[[], Any]) -> "Way":
        """Do `work` until the end is reached."""
        threading.setprofile(self._note)  # a thread draws the batches
        sys.setprofile(self._note)
        try:
            status = work()
        except Reached:
            return self
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
        raise ConfigError(f"{self._end} was never called; the run ended with status {status}.")

    def _note(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        is_function = code.co_flags & inspect.CO_OPTIMIZED and not code.co_name.startswith("<")
        if event != "call" or not code.co_filename.startswith(PACKAGE) or not is_function:
            return  # bodies of classes and modules, lambdas and comprehensions count with what is around them
        self.codes[code] = None
        if code.co_qualname == self._end:
            sys.setprofile(None)
            self._caught(frame)
            raise Reached

    def told(self) -> str:
        """Its size."""
        files = {code.co_filename for code in self.codes}
        return f"{len(files):4} files {len(self.codes):5} functions {sum(map(length, self.codes)):6} lines"


def length(code: CodeType) -> int:
    """Lines of a function, from its first to its last."""
    lines = [line for _, _, line in code.co_lines() if line]
    return max(lines) - min(lines) + 1


def small_artifacts(root: Path) -> None:
    """World, towers, features and triplets, where they are absent."""
    here, sizes = f"root={root}", ("labelled_families=24", "heldout_families=6", "pool_families=0")
    if not is_complete(root / "checked"):
        main(["world", here, *(f"shapes.{size}" for size in sizes), "shapes.gallery_references=0"])
        main(["towers", here])
        main(["embed", here, "parts=[labelled]", "ray.enabled=false"])
        rows = read_dataset(DataConfig.model_validate({"folder": {"root": str(root / "world")}})).split("train")
        stage = open_stage(load_config(Checked, {"root": str(root)}), KIND)
        fields = [{**row.__dict__, "source": "mtst"} for row in rows]
        write_part(stage.work_uri, "part-00000", triplet_table(fields), rejected_table([]))
        stage.publish({KIND: len(fields)})


class Checked(Run):
    """The triplets that the recipe reads: here the labelled ones under another name."""

    out: Place = "@checked"


def alone(root: Path) -> Way:
    """The whole way in this process."""
    return Way(STEP).follow(lambda: main([*words(root), "ray.enabled=false", "out=@alone"]))


def driver(root: Path) -> Way:
    """The driver's way with Ray; leaves what it would hand to its workers."""

    def caught(frame: FrameType) -> None:
        (root / SETTINGS).write_bytes(pickle.dumps(frame.f_locals["fit"].settings))

    return Way(START, caught).follow(lambda: main([*words(root), "out=@driver"]))


def worker(root: Path) -> Way:
    """A worker's way with Ray, up to the training loop."""
    settings = pickle.loads((root / SETTINGS).read_bytes())  # noqa: S301  (written a moment ago)
    uris = {"status_file": str(root / "status.json"), "folder": str(root)}
    return Way(SHARE).follow(lambda: retriever_ray.work({**settings, **uris}))


WAYS = {"in this process": alone, "with Ray, driver": driver, "with Ray, worker": worker}


def words(root: Path) -> list[str]:
    """The command line that is followed."""
    return ["pretrain", RECIPE, f"root={root}", "training.engine=torch", "training.batch=8"]


def follow(name: str, root: Path, show: bool) -> None:
    """Follow one way and print it; each in a process of its own, for nothing is loaded or kept twice."""
    way = WAYS[name](root)
    say(f"{name:<18}{way.told()}")
    for code in way.codes if show else ():
        say(f"    {code.co_filename.removeprefix(PACKAGE)[1:]}: {code.co_qualname} ({length(code)})")


def run(config: TraceConfig) -> None:
    """Follow all ways."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(config.folder or name)
        for work in (partial(small_artifacts, root), *(partial(follow, name, root, config.show) for name in WAYS)):
            child = multiprocessing.get_context("spawn").Process(target=work)
            child.start()
            child.join()


if __name__ == "__main__":
    sys.exit(guarded(lambda: run(load_config(TraceConfig, overrides=sys.argv[1:]))))
