"""A method that lives in another package trains, is evaluated, indexed and served without a line changed here."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from cirray.core.config import validate
from cirray.core.errors import ArtifactError, ConfigError
from cirray.core.registry import load_plugins
from cirray.index.store import open_index
from cirray.pipelines.training.config import TrainRun

ROOT = Path(__file__).parents[3]
FIXTURES = ROOT / "tests" / "fixtures"
LANGUAGE = ROOT / "cirray" / "assets" / "shapes-language"
TINY = runpy.run_path(str(FIXTURES / "tiny_training.py"))
CHAIN = """
import json, sys
from cirray.core.config import validate
from cirray.pipelines.captions.caption import run_caption
from cirray.pipelines.captions.config import CaptionRun
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.training.config import TrainRun
from cirray.pipelines.search.index import run_index
from cirray.pipelines.texts.config import GenerateRun, GeneratorRun, MineRun
from cirray.pipelines.texts.generate import run_generate
from cirray.pipelines.texts.generator import run_generator
from cirray.pipelines.texts.mine import run_mine
from cirray.pipelines.training.train import run_train
from cirray.search_engine import SearchEngine
from cirray.triplets.captions import caption_table

fields, folder = json.loads(sys.argv[1]), sys.argv[2]
pairs = {"data": fields["data"], "features": fields["features"], "parts": ["labelled"], "exclude_parts": []}
policy = {"kind": "toy_next", "settings": {"apart": 5}}
mined = run_mine(validate(MineRun, {**pairs, "mining": {"policy": policy}, "out": folder + "/pairs"}))
told = {"data": fields["data"], "parts": ["labelled"], "out": folder + "/captions", "ray": {"enabled": False},
        "captioner": {"kind": "toy_name", "settings": {"opening": "see"}}}
run_caption(validate(CaptionRun, told))
learnt = {"data": fields["data"], "towers": fields["towers"], "features": [], "language": sys.argv[3],
          "generator": {"kind": "toy_bag", "settings": {"count": 3}}, 
          "training": {"steps": 40, "batch": 16, "optimizer": {"lr": 0.1}}, "out": folder + "/generator"}
trained = run_generator(validate(GeneratorRun, learnt))
written = run_generate(validate(GenerateRun, {"pairs": folder + "/pairs", "features": fields["features"],
    "generator": {"kind": "toy_bag", "settings": {"source": folder + "/generator"}}, "out": folder + "/synthetic",
    "ray": {"enabled": False}}))
manifest = run_train(validate(TrainRun, {**fields, "out": folder + "/toy"}))
index = {"checkpoint": folder + "/toy", "features": fields["features"], "data": None, "out": folder + "/index",
         "index": {"kind": "toy_cut", "settings": {"width": 3}}}
run_index(validate(IndexRun, index))
found = SearchEngine.open(folder + "/toy", folder + "/index")
history = [json.loads(line) for line in open(folder + "/toy/history.jsonl")]
print(json.dumps({"terms": sorted(history[-1]), "metrics": manifest.metrics, "kind": found.probe() is None}))
print("pairs", mined.counts["pairs"])
sample = json.loads(open(folder + "/generator/samples.jsonl").readline())
print("learnt", trained.metrics["train_loss"] < 4, "words", len(sample["generated"].split()), written.counts)
print("caption", caption_table(folder + "/captions").column("caption")[0].as_py())
print("columns", found.gallery.search_index._tokens_NQD.shape[2])
"""


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    made = TINY["make"](tmp_path_factory.mktemp("toy"))
    return {
        **made,
        "encoder": {"kind": "toy", "settings": {"embed_dim": 8}},
        "training": {
            **made["training"],
            "objective": "toy",
            "terms": {"toy_length": {"length": 1.5}},
            "mixing": {"kind": "toy_stride", "settings": {"stride": 3}},
        },
    }


def run_plugged(code, *arguments):
    """Run Python code in a process that knows the toy method."""
    path = os.pathsep.join([str(ROOT), str(FIXTURES / "outside")])
    environment = {**os.environ, "PYTHONPATH": path, "CIRRAY_PLUGINS": "toy_method", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)


ASKED = """
import json, sys
from cirray.core.config import load_config
from cirray.core.errors import ArtifactError, ConfigError
from cirray.pipelines.captions.config import CaptionRun
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.texts.config import GeneratorRun, MineRun
from cirray.pipelines.training.config import TrainRun, TuneRun
from cirray.pipelines.weights.config import ConvertRun
from cirray.pipelines.training.sweep import trial_run

def fault(cls, *overrides):
    try:
        return str(load_config(cls, None, overrides))
    except ConfigError as error:
        return str(error)

faults = [
    fault(TrainRun, "encoder=toy", "encoder.settings.embed_dmi=4"),
    fault(TrainRun, "training.objective=toy", "training.terms.toy_length.lenght=2"),
    fault(TrainRun, "training.mixing=toy_stride", "training.mixing.settings.strid=2"),
    fault(MineRun, "mining.policy=toy_next", "mining.policy.settings.apar=2"),
    fault(TrainRun, "training.mixing=toy_strde"),
    fault(CaptionRun, "captioner=toy_name", "captioner.settings.openin=a"),
    fault(IndexRun, "index=toy_cut", "index.settings.widht=2"),
    fault(GeneratorRun, "generator=toy_bag", "generator.settings.coutn=2"),
    fault(TrainRun, "encoder.settings.fusion=toy_mix", "encoder.settings.fusion.settings.shaer=1"),
    fault(ConvertRun, "source=x", "to=checkpoint", "encoder.settings.fusion=toy_mxi"),
    fault(GeneratorRun, "generator=toy_bag", "qformer_source=x"),
]
sweep = {"base": {"training": {"objective": "toy", "mixing": "toy_stride"}, "encoder": "toy"}}
swept = {"training.terms.toy_length.length": 3, "training.mixing.settings.stride": 2, "encoder.settings.embed_dim": 6}
run = trial_run(load_config(TuneRun, sweep), swept, "x")
found = [run.training.terms["toy_length"].length, run.training.mixing.settings.stride, run.encoder.settings.embed_dim]
mixed = {"base": {"encoder": {"settings": {"fusion": "toy_mix"}}}}
run = trial_run(load_config(TuneRun, mixed), {"encoder.settings.fusion.settings.share": 0.2}, "x")
found.append(run.encoder.settings.fusion.settings.share)
chosen = load_config(GeneratorRun, None, ["generator=toy_bag", "generator.settings.count=7"])
found.append(chosen.generator.settings.count)
print(json.dumps({"faults": faults, "swept": found}))

from cirray.cli.main import main
for verb in sys.argv[1:]:
    main(verb.split())
"""
SHOWN = {
    "finetune": ["encoder.settings", "training.terms", "training.mixing.settings"],
    "mine": ["mining.policy.settings"],
    "caption": ["captioner.settings"],
    "index": ["index.settings"],
    "train-generator": ["generator.settings"],
}


@pytest.fixture(scope="module")
def asked():
    """What one process says that knows the plug-in: a line of JSON, then help."""
    done = run_plugged(ASKED, *(f"{verb} --help {place}" for verb, places in SHOWN.items() for place in places))
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("\n")[::2]


def test_settings_of_a_plug_in_are_checked_with_near_names_and_can_be_swept(asked):
    told = json.loads(asked[0])
    wanted = ["encoder.settings.embed_dim", "training.terms.toy_length.length", "training.mixing.settings.stride",
              "mining.policy.settings.apart", "toy_stride", "captioner.settings.opening",
              "index.settings.width", "generator.settings.count", "encoder.settings.fusion.settings.share",
              "toy_mix"]  # fmt: skip
    *faults, misplaced = told["faults"]
    for sentence, name in zip(faults, wanted, strict=True):
        assert f"Did you mean '{name}'?" in sentence
    assert "qformer_source='x' is for a generator of the kind 'mtg'; generator.kind is 'toy_bag'" in misplaced
    assert told["swept"] == [3, 2, 6, 0.2, 7]


def test_help_shows_what_a_plug_in_registers_with_its_settings(asked):
    names = "toy embed_dim toy_length toy_stride stride toy_next apart toy_cut settings.width toy_name opening toy_mix"
    for words in (*names.split(), "share", "toy_bag", "settings.count"):
        assert words in asked[1], words


def test_a_method_of_another_package_goes_through_training_index_and_search(fields, tmp_path):
    done = run_plugged(CHAIN, json.dumps(fields), str(tmp_path), str(LANGUAGE))
    assert done.returncode == 0, done.stderr
    assert "learnt True words 3 {'pairs': 145, 'triplets': 290, 'rejected': 0}" in done.stdout, done.stdout
    assert "pairs 145" in done.stdout and "columns 3" in done.stdout and "caption see " in done.stdout, done.stdout
    with pytest.raises(ArtifactError, match="Unknown index backend 'toy_cut'. Known: exact, faiss."):
        open_index(str(tmp_path / "index"))
    assert '"toy_length"' in done.stdout and '"infonce"' in done.stdout and "val_R@1" in done.stdout


def test_without_its_package_the_sentence_names_the_kind_and_those_that_are_known(fields):
    with pytest.raises(
        ConfigError, match="(?s)Unknown kind of retriever 'toy'.*Known: dual, forked, qformer, word_map"
    ):
        validate(TrainRun, fields)


def test_a_plug_in_that_cannot_be_imported_is_named_with_the_remedy(fields, monkeypatch):
    monkeypatch.setenv("CIRRAY_PLUGINS", "no_such_module")
    load_plugins.cache_clear()
    with pytest.raises(ConfigError, match="(?s)'no_such_module' cannot be imported.*PYTHONPATH"):
        validate(TrainRun, fields)
