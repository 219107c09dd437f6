"""Published weights that were opened without training, through the other stages: evaluated, compared, trained on."""

import published
import pytest

from cirray.core.config import validate
from cirray.core.errors import ConfigError
from cirray.pipelines.data.config import WorldRun
from cirray.pipelines.data.world import run_world
from cirray.pipelines.evaluation.compare import run_compare
from cirray.pipelines.evaluation.config import CompareRun
from cirray.pipelines.evaluation.evaluate import run_evaluate
from cirray.pipelines.evaluation.evaluate_config import EvaluateRun
from cirray.pipelines.evaluation.query_shapes import SHAPES
from cirray.pipelines.features.config import EmbedRun
from cirray.pipelines.features.embed import run_embed
from cirray.pipelines.search.config import IndexRun, ModelRun
from cirray.pipelines.search.index import run_index
from cirray.pipelines.search.models import run_model
from cirray.pipelines.training.config import TrainRun
from cirray.pipelines.training.train import run_train

ALONE = {"ray": {"enabled": False}}
TRAINING = {"objective": "finetune", "steps": 3, "batch": 8, "log_every": 1, "optimizer": {"lr": 1e-3}}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A small world, a CLIP opened as a checkpoint, and the world's features by its tower."""
    home = tmp_path_factory.mktemp("opened")
    world = {"labelled_families": 12, "heldout_families": 2, "pool_families": 0, "gallery_references": 4}
    run_world(WorldRun.model_validate({"shapes": world, "out": str(home / "world")}))
    published.clip(home / "clip")
    run_model(ModelRun(source=str(home / "clip"), out=str(home / "opened")))
    embed = {"data": data_of(home), "tower": str(home / "opened"), "out": str(home / "features")}
    run_embed(validate(EmbedRun, {**embed, **ALONE}))
    return home


def data_of(home):
    return {"folder": {"root": str(home / "world")}}


def train(home, out, **changes):
    fields = {"data": data_of(home), "features": [str(home / "features")], "towers": str(home / "opened")}
    given = {**fields, "init": str(home / "opened"), "training": TRAINING, **ALONE, **changes}
    return run_train(validate(TrainRun, {**given, "out": str(out)}))


def recalls(home, checkpoint):
    fields = {"data": data_of(home), "features": [str(home / "features")], "checkpoint": str(checkpoint)}
    return run_evaluate(validate(EvaluateRun, {**fields, "out": f"{checkpoint}-report"})).metrics


def test_it_is_a_row_of_evaluate_and_of_compare_and_start_weights_of_finetune(home):
    before = recalls(home, home / "opened")
    made = train(home, home / "tuned")
    after = recalls(home, home / "tuned")
    assert made.metrics["loss"] > 0 and before["R@10"] > 0
    rows = {"no training": str(home / "opened"), "three steps": str(home / "tuned")}
    fields = {"data": data_of(home), "features": [str(home / "features")], "checkpoints": rows}
    compared = run_compare(validate(CompareRun, {**fields, "out": str(home / "compared")}))
    assert "no training" in compared.extra["table"] and "three steps" in compared.extra["table"]
    assert after["R@10"] > 0 and (home / "tuned" / "model" / "vision").is_dir()


def test_compare_measures_what_each_shape_of_query_does_on_the_world_s_scenes(home):
    places = {"checkpoint": str(home / "opened"), "images": str(home / "world" / "gallery")}
    run_index(validate(IndexRun, {**places, "out": str(home / "index")}))
    fields = {
        "data": data_of(home), "features": [str(home / "features")], "checkpoints": {"clip": str(home / "opened")},
        "judge": str(home / "world"), "row_shapes": {"clip": str(home / "index")}, "shape_queries": 8,
    }  # fmt: skip
    made = run_compare(validate(CompareRun, {**fields, "out": str(home / "shapes")}))
    rows = {row["name"]: row for row in made.extra["shapes"]["clip"]}
    assert list(rows) == list(SHAPES) and all(name in made.extra["table"] for name in SHAPES)
    assert all(len(row["with"]) == len(row["chance"]) == 3 and 0 <= min(row["with"]) for row in rows.values())
    assert rows["all that hold it left out (less is better)"]["with"] == (0, 0, 0)
    assert min(rows["a picture alone"]["with"]) > 0 and rows["a text alone"]["without"] == ()
    with pytest.raises(ConfigError, match="name its root with judge=PLACE"):
        run_compare(validate(CompareRun, {**fields, "judge": "", "out": str(home / "no")}))
    with pytest.raises(ConfigError, match="row in row_shapes 'clup'"):
        run_compare(validate(CompareRun, {**fields, "row_shapes": {"clup": "x"}, "out": str(home / "no")}))


def test_a_model_without_a_weight_to_train_is_refused_in_words(home):
    frozen = {"kind": "dual", "settings": {"train_text": False}}
    with pytest.raises(ConfigError, match="Every weight of this model is frozen.*train_text=true"):
        train(home, home / "nothing", encoder=frozen)
