"""A method that lives in another package trains, is evaluated, indexed and served without a line changed here."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FIXTURES = ROOT / "tests" / "fixtures"
TINY = runpy.run_path(str(FIXTURES / "tiny_training.py"))
CHAIN = """
import json, sys
from cirray.core.config import validate
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.training.config import TrainRun
from cirray.pipelines.search.index import run_index
from cirray.pipelines.training.train import run_train
from cirray.search_engine import SearchEngine

fields, folder = json.loads(sys.argv[1]), sys.argv[2]
manifest = run_train(validate(TrainRun, {**fields, "out": folder + "/toy"}))
index = {"checkpoint": folder + "/toy", "features": fields["features"], "data": None, "out": folder + "/index"}
run_index(validate(IndexRun, index))
found = SearchEngine.open(folder + "/toy", folder + "/index")
history = [json.loads(line) for line in open(folder + "/toy/history.jsonl")]
print(json.dumps({"terms": sorted(history[-1]), "metrics": manifest.metrics, "kind": found.probe() is None}))
"""


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    made = TINY["make"](tmp_path_factory.mktemp("toy"))
    return {
        **made,
        "encoder": {"kind": "toy", "settings": {"embed_dim": 8}},
        "training": {**made["training"], "objective": "toy"},
    }


def run_chain(fields, folder, plugins):
    import json

    path = os.pathsep.join([str(ROOT), str(FIXTURES / "outside")])
    environment = {**os.environ, "PYTHONPATH": path, "CIRRAY_PLUGINS": plugins, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHAIN, json.dumps(fields), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)


def test_a_method_of_another_package_goes_through_training_index_and_search(fields, tmp_path):
    done = run_chain(fields, tmp_path, "toy_method")
    assert done.returncode == 0, done.stderr
    assert '"toy_length"' in done.stdout and '"infonce"' in done.stdout and "val_R@1" in done.stdout


def test_without_its_package_the_sentence_names_the_kind_and_those_that_are_known(fields, tmp_path):
    done = run_chain(fields, tmp_path, "")
    assert done.returncode and "ConfigError: Unknown kind of retriever 'toy'" in done.stderr
    assert "cirray_dual_encoder" in done.stderr


def test_a_plug_in_that_cannot_be_imported_is_named_with_the_remedy(fields, tmp_path):
    done = run_chain(fields, tmp_path, "no_such_module")
    assert done.returncode and "'no_such_module' cannot be imported" in done.stderr and "PYTHONPATH" in done.stderr
