"""`cirray search` here and through a running service: one answer, one page, and no torch for the second."""

import json
import os
import runpy
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import uvicorn

from cirray.cli.main import main
from cirray.search_engine import SearchEngine
from cirray.serving.api import make_api
from cirray.serving.config import ServeArgs, ServingSettings
from cirray.serving.service import DirectService

TINY = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "tiny_service.py")))
HEAVY = {"torch", "ray", "transformers", "faiss", "deepspeed", "open_clip", "torchvision", "scipy", "pandas"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint, its index, and a service of both at `url`."""
    root = tmp_path_factory.mktemp("s")
    (root / "m.csv").write_text(
        "\n".join(["id,price", *(f"plain/{number:02d},{number}" for number in range(0, 24, 2))])
    )
    made = TINY.make(root, metadata=str(root / "m.csv"))
    service = DirectService(SearchEngine.open(made.checkpoint, made.index), ServingSettings())
    server = uvicorn.Server(uvicorn.Config(make_api(lambda: service, ServeArgs()), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    made.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield made
    server.should_exit = True
    thread.join(10)


def searched(capsys, page, *words):
    """Status, what is printed but for the page's name, and the page."""
    status = main(["search", *words, f"out={page}"])
    said = capsys.readouterr()
    return status, said.out.replace(str(page), "PAGE"), said.err, page.read_text() if page.exists() else ""


MORE = {
    "filter": ["--id", "plain/00", "filter=price < 9", "fields=[price]", "offset=1", "exclude=[plain/04]"],
    "references": ["references=[{id: plain/00, weight: 2}, {image: PICTURE, box: [0, 0, 0.5, 1]}]", "--text", "blue"],
    "unwanted": ["--id", "plain/00", "--text", "blue", "unwanted.text=red", "box=[0, 0, 0.5, 1]"],
    "unwanted picture": ["--text", "blue", "unwanted.id=plain/00", "unwanted.weight=0.3"],
}


@pytest.mark.parametrize("name", MORE)
def test_a_service_answers_every_shape_as_the_same_search_here(made, name, capsys, tmp_path):
    words = [word.replace("PICTURE", str(made.images / "plain" / "04.png")) for word in MORE[name]]
    here = searched(capsys, tmp_path / "here.html", *words, f"checkpoint={made.checkpoint}", f"index={made.index}")
    there = searched(capsys, tmp_path / "there.html", *words, f"--url={made.url}")
    assert here == there and here[0] == 0, here[2]
    if name == "filter":
        assert "price: " in here[1].splitlines()[0] and len(here[1].splitlines()) == 4


@pytest.mark.parametrize("kind", ["id", "picture"])
def test_a_service_s_answer_and_page_are_those_of_the_same_search_here(made, kind, capsys, tmp_path):
    picture = str(made.images / "plain" / "04.png")
    words = ["--id", "a b/pïc 03"] if kind == "id" else ["--image", picture]
    words += ["--text", "make it red", "k=5"]
    here = searched(capsys, tmp_path / "here.html", *words, f"checkpoint={made.checkpoint}", f"index={made.index}")
    there = searched(capsys, tmp_path / "there.html", *words, f"--url={made.url}")
    assert here == there and here[0] == 0 and len(here[1].splitlines()) == 7 and here[3].count("<img") == 6


@pytest.mark.parametrize(
    "words, told",
    [
        (["--id", "nothing", "url=URL"], "has no image 'nothing'"),
        (["--id", "plain/00", "url=http://127.0.0.1:9"], "http://127.0.0.1:9"),
        (["--id", "plain/00", "url=URL", "index=mine"], "has its own index; leave out index="),
        (["--id", "plain/00", "url=URL", "gallery=shop"], "Unknown gallery 'shop'. Known: default"),
        (["--id", "plain/00", "gallery=shop"], "give its url= too"),
        (["--id", "plain/00", "url=127.0.0.1:8000"], "'127.0.0.1:8000'"),
        (["--id", "plain/00", "--image", "x.png", "url=URL"], "both were given"),
        (["--id", "plain/00", "--weight", "0.5", "url=URL"], "no weight"),
    ],
)
def test_what_a_service_cannot_answer_is_one_sentence(made, words, told, capsys, tmp_path):
    status, _, error, page = searched(
        capsys, tmp_path / "p.html", *[word.replace("URL", made.url) for word in words], "text=make it red"
    )
    assert (status, page) == (2, "") and told in error and len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("typed", ["plain/00.png", "./plain/00", "photos/plain/00.png"])
def test_an_id_is_found_as_the_gallery_writes_it_here_and_through_a_service(made, typed, capsys, tmp_path):
    told = ["--id", typed, "text=make it red"]
    through = searched(capsys, tmp_path / "a.html", *told, f"url={made.url}")
    here = searched(capsys, tmp_path / "b.html", *told, f"checkpoint={made.checkpoint}", f"index={made.index}")
    plain = searched(capsys, tmp_path / "c.html", "--id", "plain/00", "text=make it red", f"url={made.url}")
    assert (through[0], through[1]) == (0, plain[1]) and (here[0], here[1]) == (0, plain[1])


def test_an_id_that_is_nearly_one_is_told(made, capsys, tmp_path):
    for where in ([f"url={made.url}"], [f"checkpoint={made.checkpoint}", f"index={made.index}"]):
        status, _, error, _ = searched(capsys, tmp_path / "p.html", "--id", "plane/00", "text=make it red", *where)
        assert status == 2 and "has no image 'plane/00'" in error and "Did you mean 'plain/0" in error


def loaded(tmp_path, *words):
    """Libraries that a search in a process of its own has loaded."""
    script = (
        "import json, sys\nfrom cirray.cli.main import main\nassert main(sys.argv[1:]) == 0\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    command = [sys.executable, "-c", script, "search", "id=plain/00", "text=make it red", *words]
    done = subprocess.run(
        [*command, f"out={tmp_path / 'p.html'}"], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_a_search_through_a_service_loads_no_heavy_library(made, tmp_path):
    assert loaded(tmp_path, f"url={made.url}") & HEAVY == set()


def test_a_search_here_loads_what_its_model_needs_and_no_ray_and_no_other_backbone(made, tmp_path):
    found = loaded(tmp_path, f"checkpoint={made.checkpoint}", f"index={made.index}")
    assert {"torch", "transformers", "faiss"} <= found
    unwanted = {"ray", "matplotlib", "fastapi", "deepspeed", "sentence_transformers", "open_clip", "timm"}
    assert found & unwanted == set()
