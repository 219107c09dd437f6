"""The part of docs/kubernetes.md that needs no cluster, as it is typed: a folder, an index, a key, an answer over HTTP.

Ray is left out (tests/integration/test_serve.py starts it): the application that it would run answers in a thread.
"""

import re
import runpy
import shlex
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import uvicorn

from cirray.cli.main import main
from cirray.search_engine import SearchEngine
from cirray.serving import launch
from cirray.serving.api import make_api
from cirray.serving.service import DirectService

ROOT = Path(__file__).resolve().parents[2]
TINY = SimpleNamespace(**runpy.run_path(str(ROOT / "tests" / "fixtures" / "tiny_service.py")))
PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, re.S)
INDEX, KEYS, SERVE = (shlex.split(line, comments=True) for line in BLOCKS[0].strip().splitlines())
CURL = shlex.split(BLOCKS[1])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CIRRAY_ROOT", str(tmp_path / "root"))
    TINY.write_pictures(tmp_path / "pictures", broken=False)
    TINY.write_checkpoint(tmp_path / "MODEL")
    (tmp_path / "photo.jpg").write_bytes(TINY.picture(77, kind="JPEG"))
    return tmp_path


@pytest.fixture
def started(monkeypatch):
    """What `cirray serve` would hand to Ray, answering in a thread on a free port."""
    held = SimpleNamespace()

    def start(plan, told):
        service = DirectService(SearchEngine.open(plan.args.checkpoint, plan.args.index))
        config = uvicorn.Config(make_api(lambda: service, plan.args), port=0, log_level="error", lifespan="off")
        held.server = uvicorn.Server(config)
        held.thread = threading.Thread(target=held.server.run, daemon=True)
        held.thread.start()
        while not held.server.started:
            time.sleep(0.02)
        held.port = held.server.servers[0].sockets[0].getsockname()[1]

    monkeypatch.setattr(launch, "start", start)
    monkeypatch.setattr(launch, "run_serve", partial(launch.run_serve, wait=False))
    monkeypatch.setattr(launch, "check_port", lambda *given: None)
    monkeypatch.setattr(launch, "private_cluster", lambda **given: None)
    monkeypatch.setattr(launch, "set_default", lambda *given: None)
    yield held
    held.server.should_exit = True
    held.thread.join(10)


def asked(words, port, key):
    """The page's curl command as a request: its address, its header and its form."""
    url = next(word for word in words if word.startswith("http")).replace(":8000", f":{port}")
    options = list(zip(words, words[1:], strict=False))
    name, _, value = next(word for flag, word in options if flag == "-H").partition(": ")
    form = dict(word.split("=", 1) for flag, word in options if flag == "-F")
    files = {field: Path(value[1:]).read_bytes() for field, value in form.items() if value.startswith("@")}
    rest = {field: value for field, value in form.items() if field not in files}
    headers = {name: value.replace("$CIRRAY_KEY", key)} if key else {}
    return httpx.post(
        url, data=rest, files={name: ("photo.jpg", data) for name, data in files.items()}, headers=headers
    )


def test_the_steps_of_the_page_lead_from_a_folder_to_an_answer_with_a_key(folder, started, capsys):
    assert INDEX[0] == KEYS[0] == SERVE[0] == "cirray" and main(INDEX[1:]) == 0
    capsys.readouterr()
    assert main(KEYS[1:]) == 0
    key = capsys.readouterr().out.split("\n")[0]
    assert main(SERVE[1:]) == 0
    assert asked(CURL, started.port, "").status_code == 401
    reply = asked(CURL, started.port, key)
    assert reply.status_code == 200 and len(reply.json()["hits"]) == 3
    until = time.monotonic() + 5  # a line is written once its answer has gone
    while len(lines := (folder / "access.jsonl").read_text().splitlines()) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    assert '"key": "shop"' in lines[-1] and '"status": 401' in lines[-2]
