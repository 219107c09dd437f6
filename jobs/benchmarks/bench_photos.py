"""Indexing a folder of photographs: images a second beside the model alone, the same folder again, and peak memory.

    python jobs/benchmarks/bench_photos.py --images DIR [count=713] [rounds=3] [memory=[713,7130]] [broken=37]

The model has CLIP ViT-B/32's sizes and random weights. Rounds of the bare model (decoded arrays in memory, batches of
32) and of `cirray index` take turns, so that other work on the machine meets both. The bare model runs twice, with all
cores on one batch and with a batch on each core; the faster way counts. Memory is the peak of a process of its own;
there the tower has one layer, since what must not grow is what an image leaves behind. With `broken`, a folder of
10,000 small JPEGs of which so many are damaged is indexed too: it must end with status 3 and name each of them once.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from PIL import Image
from pydantic import Field

from cirray.cli.main import guarded
from cirray.cli.words import overrides_of
from cirray.core.config import load_config
from cirray.core.environ import available_cores
from cirray.core.errors import StageError
from cirray.core.fields import Effort, Place
from cirray.core.log import say
from cirray.core.places import Run
from cirray.data.images import open_image
from cirray.data.listing import list_pictures
from cirray.image_text import load_encoder
from cirray.models.config import DualEncoderConfig
from cirray.models.dual import DualEncoderRetriever
from cirray.models.outlines import outline_tower
from cirray.models.text import build_tokenizer
from cirray.models.towers.hf_clip import HfClipText
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.search.index import run_index

SIZES = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "patch_size": 32, "image_size": 224}
WORDS = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1, "num_hidden_layers": 1,
         "projection_dim": 512}  # fmt: skip
ENDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
BARE = 32
TELLING = (
    f"import sys; sys.path.append({str(Path(__file__).parent)!r})\n"
    "from cirray.cli.main import main; from own_memory import own_kib\n"
    "status = main(sys.argv[1:]); print('peak', own_kib(), 'KiB'); sys.exit(status)"
)


class PhotosConfig(Run):
    """What is measured."""

    images: Place = ""
    """Folder of photographs."""
    count: Effort[int] = Field(713, ge=64)
    """Photographs of the timed rounds."""
    rounds: Effort[int] = Field(3, ge=0)
    """Turns of the timed rounds; 0: memory alone."""
    memory: tuple[int, ...] = (713, 7130)
    """Sizes of the folders whose peak memory is compared; empty: none."""
    broken: Effort[int] = Field(0, ge=0)
    """Damaged pictures among `many`; 0: that folder is not made."""
    many: Effort[int] = Field(10_000, ge=100)
    """Small pictures of that folder."""


def measure(config: PhotosConfig) -> None:
    """Take all measures and print them."""
    say(machine("torch"))
    with tempfile.TemporaryDirectory(prefix="cirray-photos-") as folder:
        home = Path(folder)
        paths = [path for _, path in list_pictures(config.images).pictures]
        if config.rounds:
            speed(config, home, fill(home / "photos", paths, config.count))
        thin = write_model(home / "thin", layers=1) if config.memory else home
        for count in config.memory:
            size = peak(home, fill(home / f"photos-{count}", paths, count), thin)[0]
            say(f"peak memory, {count:,} photographs: {size / 2**10:,.0f} MB")
        if config.broken:
            damaged(config, home, paths)


def damaged(config: PhotosConfig, home: Path, paths: list[str]) -> None:
    """Index a tenth as many, all sound, and then the damaged folder; say what was told, and the memory of both.

    Raises StageError when it named other pictures than the damaged ones.
    """
    tiny = write_model(home / "tiny", 1, hidden_size=64, intermediate_size=64, num_attention_heads=2)
    for count, broken in ((config.many // 10, 0), (config.many, config.broken)):
        folder = home / f"small-{count}-{broken}"
        names = fill_small(folder, paths, count, broken)
        begin = time.perf_counter()
        size, told = peak(home, folder, tiny, status=3 if broken else 0)
        say(f"{count:,} small JPEGs, {broken} damaged: {time.perf_counter() - begin:.0f} s, {size / 2**10:,.0f} MB")
    say(told[told.index("index: ") :].strip())
    rows = json.loads((Path(f"{folder}-index") / "rejected.json").read_text())
    if sorted(name for name, _ in rows) != sorted(names):
        raise StageError(f"{len(rows)} pictures are named in rejected.json, and {len(names)} are damaged.")


def fill_small(folder: Path, paths: list[str], count: int, broken: int) -> list[str]:
    """A folder of small JPEGs; ids of the damaged ones: cut, empty, or no picture at all."""
    folder.mkdir()
    names = list[str]()
    every = count // broken if broken else count + 1
    for number in range(count):
        path = folder / f"{number:06d}.jpg"
        with Image.open(paths[number % len(paths)]) as image:
            small = image.convert("RGB").resize((96, 96))
        small.putpixel((0, 0), (number % 256, number // 256 % 256, 0))
        small.save(path)
        if number % every == every - 1 and len(names) < broken:
            names.append(path.stem)
            path.write_bytes((path.read_bytes()[:700], b"", b"<!DOCTYPE html><html>404</html>")[len(names) % 3])
    return names


def speed(config: PhotosConfig, home: Path, photos: Path) -> None:
    """Images a second of the bare model and of an index, in turns; then the same folder again."""
    model = write_model(home / "model", layers=12)
    found = load_encoder(model)
    paths = [path for _, path in list_pictures(photos).pictures]
    arrays_NHWC = np.stack([found.transform(open_image(path)) for path in paths[: 8 * BARE]])

    def index(number: int = 0) -> None:
        run_index(IndexRun(model=str(model), images=str(photos), root=str(home), out=str(home / f"index-{number}")))

    works: dict[str, Callable[[int], None]] = {
        "one batch on all cores": lambda at: bare(found.vision, arrays_NHWC, 1),
        "a batch on each core": lambda at: bare(found.vision, arrays_NHWC, available_cores()),
        "cirray index": index,
    }
    bare(found.vision, arrays_NHWC[:BARE], 1)
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for at in range(config.rounds):
        for name, work in works.items():
            count = len(paths) if work is index else len(arrays_NHWC)
            wall, busy = timed(partial(work, at))
            spent[name].append((wall / count, busy / count))
    each = {name: np.median(rows, axis=0) for name, rows in spent.items()}
    for name, (wall, busy) in each.items():
        say(f"{name}: {1 / wall:.1f} images/s, {1000 * busy:.1f} ms of processor time an image")
    (*bares, (whole, busy)) = each.values()
    walls, cores = zip(*bares, strict=True)
    say(f"share: {min(walls) / whole:.0%} of the images a second, {min(cores) / busy:.0%} by processor time")
    say(f"again, unchanged: {timed(index)[0]:.2f} s")
    for path in paths[::100]:
        other_pixel(path, path)
    say(f"again, 1 % changed: {timed(index)[0]:.2f} s")


def bare(vision: Any, arrays_NHWC: np.ndarray, at_once: int) -> None:
    """The model over decoded images, some batches at once, each with its share of the cores."""

    @torch.inference_mode()
    def run(start: int) -> None:
        vision(torch.from_numpy(arrays_NHWC[start : start + BARE]))

    share = available_cores() // at_once
    with ThreadPoolExecutor(at_once, "bare", torch.set_num_threads, (share,)) as pool:
        list(pool.map(run, range(0, len(arrays_NHWC), BARE)))


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock and of this process's cores."""
    begin, busy = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begin, time.process_time() - busy


def fill(folder: Path, paths: list[str], count: int) -> Path:
    """A folder of that many pictures: the given ones, then copies of them with another pixel."""
    folder.mkdir()
    for number in range(count):
        path = Path(paths[number % len(paths)])
        target = folder / f"{number:06d}{path.suffix}"
        if number < len(paths):
            shutil.copy(path, target)
        else:
            other_pixel(str(path), str(target), number // len(paths))
    return folder


def other_pixel(path: str, target: str, value: int = 255) -> None:
    """Write a picture with another first pixel."""
    with Image.open(path) as image:
        changed = image.convert("RGB")
    changed.putpixel((0, 0), (value % 256, 255 - value % 256, 0))
    changed.save(target)


def write_model(folder: Path, layers: int, **sizes: int) -> Path:
    """A model folder with random weights and ViT-B/32's sizes, or others."""
    folder.mkdir()
    vision = {**SIZES, "num_hidden_layers": layers, "projection_dim": 512, **sizes}
    tree = {"model_type": "clip", "vision_config": vision, "text_config": {**WORDS, **ENDS}, "projection_dim": 512}
    (folder / "config.json").write_text(json.dumps(tree))
    torch.manual_seed(0)
    tower = outline_tower(str(folder))
    words = build_tokenizer(["a photograph of something"])
    text = HfClipText.build({**WORDS, "vocab_size": len(words), **ENDS}, words)
    DualEncoderRetriever(DualEncoderConfig(), text, "hf_clip", tower.width).save(folder)
    (folder / "vision").mkdir()
    tower.save(folder / "vision")
    return folder


def peak(home: Path, photos: Path, model: Path, status: int = 0) -> tuple[int, str]:
    """Peak resident memory in KB of `cirray index` in a process of its own, and what it printed.

    The process reads its own peak: what `wait4` tells begins at the peak of the process that started it.

    Raises:
        StageError: when it fails.
    """
    words = ["index", "--model", str(model), "--images", str(photos), "--root", str(home), "--out", f"{photos}-index"]
    done = subprocess.run([sys.executable, "-c", TELLING, *words], capture_output=True, text=True)
    said = done.stdout + done.stderr
    found = re.search(r"peak (\d+) KiB", said)
    if done.returncode != status or not found:
        raise StageError(f"cirray index ended with status {done.returncode}: {said[-300:]}")
    return int(found[1]), said


if __name__ == "__main__":
    sys.exit(guarded(lambda: measure(load_config(PhotosConfig, None, overrides_of(sys.argv[1:])))))
