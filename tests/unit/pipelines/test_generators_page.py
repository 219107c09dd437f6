"""docs/generators.md as it is written: its commands about large models and about reranking run on a small world."""

import re
import runpy
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import ANY

import pytest

from cirray.cli.main import main
from cirray.core.artifacts import read_manifest
from cirray.data.config import DataConfig, FolderConfig, ShapesConfig
from cirray.data.readers import read_dataset
from cirray.data.shapes.world import write_world
from cirray.generators.engines import http
from cirray.mining.pairs import pair_id
from cirray.types import Pair

ROOT = Path(__file__).resolve().parents[3]
FIXTURES = ROOT / "tests" / "fixtures"
PAGE = (ROOT / "docs" / "generators.md").read_text()
TINY, SERVICE, LMM, CAPTIONED, WORLD = (
    SimpleNamespace(**runpy.run_path(str(FIXTURES / f"{name}.py")))
    for name in ("tiny_pipeline", "tiny_service", "lmm_stub", "small_captioner", "world_endpoint")
)
HERE = {"generate": ["ray.enabled=false"], "caption": ["ray.enabled=false"], "rewrite": ["ray.enabled=false"]}
"""Words of a verb in this test: no cluster is started."""


def commands(heading):
    """The `cirray` lines of a section, continuation lines joined, comments dropped."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    blocks = "".join(re.findall(r"```bash\n(.*?)```", section, flags=re.S)).replace("\\\n", " ").splitlines()
    return [shlex.split(line.split(" #")[0]) for line in blocks if line.startswith("cirray ")]


def answer(body, number):
    """What the server says: points, texts of a pair, or a caption."""
    schema = str(body.get("response_format"))
    return {"score": number % 10} if "score" in schema else LMM.GOOD if "forward" in schema else "a red star"


@pytest.fixture(scope="module")
def server():
    with LMM.Stub(answer) as stub:
        yield stub


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A root with a world, pairs of its pool, features, a checkpoint with a matching head and its index."""
    home = tmp_path_factory.mktemp("page")
    write_world(
        ShapesConfig(labelled_families=2, heldout_families=1, pool_families=2, gallery_references=2), home / "world"
    )
    pool = read_dataset(DataConfig(folder=FolderConfig(root=str(home / "world")))).pool_ids
    pairs = [Pair(pair_id(a, b), a, b, "g", 0.9, 0) for a, b in zip(pool[:3], pool[1:4], strict=True)]
    TINY.write_pairs_artifact(home / "pairs", pairs)
    SERVICE.write_checkpoint(home / "checkpoint", matching="trained")
    SERVICE.write_features(home / "features", home / "world", home / "checkpoint")
    shutil.copytree(home / "checkpoint", home / "vdg")
    CAPTIONED.save_llava(home / "FOLDER")
    return home


@pytest.fixture
def run(home, server, monkeypatch, capsys):
    """Runs a command of the page; returns its status and what it says."""
    monkeypatch.setenv("CIRRAY_ROOT", str(home))
    monkeypatch.setenv("HOME", str(home / "home"))
    monkeypatch.setattr(http, "FIRST_PAUSE_S", 0.01)
    monkeypatch.delenv("CIRRAY_LMM_KEY", raising=False)
    monkeypatch.chdir(home)

    def typed(words, *more):
        engine = next((word.partition(".model=")[0] for word in words if word.endswith(".model=MODEL")), "")
        known = {"PHOTOS": str(home / "world"), "FOLDER": str(home / "FOLDER"), "MODEL": "tiny-vl"}
        words = [re.sub("|".join(known), lambda found: known[found[0]], word) for word in words[1:]]
        words = [word for word in words if ".endpoints=" not in word]
        words += [f"{engine}.endpoints=[{server.url}]"] if engine else []
        status = main([*words, *HERE.get(words[0], []), *more])
        told = capsys.readouterr()
        return status, told.out + told.err

    return typed


def test_the_commands_about_large_models_run_as_they_are_written(home, server, run):
    recipe, own, plan, caption, told, rewrite, local = commands("With the model you have")
    (home / "home" / "data").mkdir(parents=True)
    (home / "home" / "data" / "nlvr2").symlink_to(home / "world")
    shutil.copytree(home / "pairs", home / "nlvr2" / "pairs")
    settings = "generator.settings.engine.settings"
    assert run(recipe, "guard=[]", f"{settings}.model=tiny-vl", f"{settings}.endpoints=[{server.url}]") == (0, ANY)
    assert run(own) == (0, ANY) and LMM.pictures_of(server.bodies[-1])
    for place in (home / "nlvr2" / "lmm", home / "synthetic"):
        assert read_manifest(place).counts == {"pairs": 3, "triplets": 6, "rejected": 0}
    status, said = run(plan)
    assert status == 0 and "10,000" in said and "cost" in said
    assert run(caption) == (0, ANY) and read_manifest(home / "captions").counts["captions"] > 3
    assert run(told) == (0, ANY) and "Picture A: a red star" in server.texts()[-1]
    assert run(rewrite) == (0, ANY) and "a red star" in server.texts()[-1]
    status, said = run(local)  # random weights: the model reads both pictures, and no answer of it is JSON
    assert status == 2 and "All 6 rows were rejected, most often: the answer is not the JSON" in said


def test_the_commands_about_reranking_run_as_they_are_written(home, server, run):
    index = ["cirray", "index", "data.folder.root=PHOTOS"]
    assert run(index, "ray.enabled=false") == (0, ANY)
    search, evaluate, compare, serve = commands("Look again at the first answers")
    shutil.copy(next((home / "world").rglob("*.png")), home / "photo.jpg")
    assert run(search) == (0, ANY)
    before = len(server.bodies)
    assert run(evaluate) == (0, ANY) and len(server.bodies) > before
    status, said = run(compare)
    assert status == 0 and "plain" in said and "reranked" in said
    assert serve == ["cirray", "serve", "rerank=matching"]


def test_a_large_model_that_knows_the_world_writes_its_true_texts_and_lifts_every_answer_within_its_reach(home, run):
    engine = ["generator.kind=lmm", "generator.settings.data.folder.root=@world", "judge=@world"]
    model = "engine.settings={{model: world, endpoints: [{}]}}".format
    rerank = ["evaluate", "rerank.kind=lmm", "rerank.top=5", "ks=[1,5]"]
    with LMM.Stub(WORLD.KnowsWorld(home / "world"), ("world",)) as stub:
        asked = f"generator.settings.{model(stub.url)}"
        assert run(["cirray", "generate", *engine, asked, "out=@true"]) == (0, ANY)
        assert run(["cirray", *rerank, f"rerank.settings.{model(stub.url)}", "out=@knowing"]) == (0, ANY)
    with LMM.Stub(WORLD.KnowsWorld(home / "world", wrong=1.0), ("world",)) as stub:
        assert run(["cirray", *rerank, f"rerank.settings.{model(stub.url)}", "out=@misled"]) == (0, ANY)
    with LMM.Stub(lambda body, number: "Lovely pictures.", ("world",)) as stub:
        mute = f"rerank.settings.{model(stub.url)}"
        status, said = run(["cirray", *rerank, mute, "rerank.settings.engine.settings.tries=1", "out=@mute"])
    assert status == 0 and "has no score from 0 to 10: 'Lovely pictures.'" in said
    assert f"{read_manifest(home / 'mute').counts['queries']} queries keep the retriever's order" in said
    assert run(["cirray", "evaluate", "ks=[1,5]", "out=@plain"]) == (0, ANY)
    plain, knowing, misled = (read_manifest(home / name).metrics for name in ("plain", "knowing", "misled"))
    assert knowing["R@1"] == knowing["R@5"] == plain["R@5"] > plain["R@1"] > misled["R@1"] == 0
    assert read_manifest(home / "true").metrics["exact_single_edits"] == 1.0
