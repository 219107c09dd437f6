"""A model of sentence-transformers through the other stages: embedded, evaluated jointly, trained on."""

import embedders
import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from cirray.core.config import validate
from cirray.core.errors import ConfigError
from cirray.data.images import open_place
from cirray.data.readers import read_dataset
from cirray.evaluation.rankings import read_rankings
from cirray.pipelines.data.config import WorldRun
from cirray.pipelines.data.world import run_world
from cirray.pipelines.evaluation.compare import run_compare
from cirray.pipelines.evaluation.config import CompareRun
from cirray.pipelines.evaluation.evaluate import run_evaluate
from cirray.pipelines.evaluation.evaluate_config import EvaluateRun
from cirray.pipelines.features.config import EmbedRun
from cirray.pipelines.features.embed import run_embed
from cirray.pipelines.search.config import ModelRun
from cirray.pipelines.search.models import run_model
from cirray.pipelines.training.config import TrainRun
from cirray.pipelines.training.train import run_train
from cirray.pipelines.weights.config import ExportRun
from cirray.pipelines.weights.export import run_export

ALONE = {"ray": {"enabled": False}}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A small world, a vision-language model opened as a checkpoint, and the world's features by it."""
    home = tmp_path_factory.mktemp("opened")
    world = {"labelled_families": 12, "heldout_families": 2, "pool_families": 0, "gallery_references": 4}
    run_world(WorldRun.model_validate({"shapes": world, "out": str(home / "world")}))
    embedders.vision_language(home / "embedder")
    run_model(ModelRun(source=str(home / "embedder"), out=str(home / "opened")))
    fields = {"data": data_of(home), "tower": str(home / "opened"), "out": str(home / "features")}
    run_embed(validate(EmbedRun, {**fields, **ALONE}))
    return home


def data_of(home):
    return {"folder": {"root": str(home / "world")}}


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_its_row_ranks_as_the_library_s_joint_encoding_of_the_references_themselves(home):
    fields = {"data": data_of(home), "features": [str(home / "features")]}
    report = {**fields, "checkpoint": str(home / "opened"), "out": str(home / "report")}
    made = run_evaluate(validate(EvaluateRun, report))
    dataset, theirs = read_dataset(validate(EvaluateRun, report).data), SentenceTransformer(str(home / "embedder"))
    query = dataset.queries[0]
    opened = {name: open_place(dataset.images.place(name)) for name in (query.reference_id, *dataset.gallery_ids)}
    vector = unit(theirs.encode_query([{"image": opened[query.reference_id], "text": query.modification}]))
    gallery = unit(theirs.encode_document([opened[name] for name in dataset.gallery_ids]))
    scores = dict(zip(dataset.gallery_ids, (vector @ gallery.T)[0], strict=True))
    ranked = read_rankings(str(home / "report")).lists[query.query_id]
    assert len(ranked) > 5 and made.metrics["R@10"] > 0
    found = [scores[name] for name in ranked]
    left = [score for name, score in scores.items() if name not in (*ranked, query.reference_id)]
    assert all(np.diff(found) < 1e-3) and all(score < found[-1] + 1e-3 for score in left)
    compare = {**fields, "checkpoints": {"joint": str(home / "opened")}, "out": str(home / "compared")}
    assert run_compare(validate(CompareRun, compare)).metrics["joint"]["R@10"] == made.metrics["R@10"]


def test_a_head_is_trained_over_it_while_the_model_itself_stays_as_it_is(home):
    training = {"objective": "finetune", "steps": 3, "batch": 8, "log_every": 1, "optimizer": {"lr": 1e-3}}
    fields = {
        "data": data_of(home), "features": [str(home / "features")], "towers": str(home / "opened"),
        "init": str(home / "opened"), "training": training, **ALONE,
    }  # fmt: skip

    def trained(out, **settings):
        encoder = {"kind": "dual", "settings": settings}
        return run_train(validate(TrainRun, {**fields, "encoder": encoder, "out": str(home / out)}))

    with pytest.raises(ConfigError, match="train_text=true is for CLIP and SigLIP"):
        trained("text", train_text=True, fusion="combiner")
    with pytest.raises(ConfigError, match="joint.*reads the pictures themselves|Every weight of this model is frozen"):
        trained("joint", temperature=0.02)
    assert trained("combined", fusion="combiner").metrics["loss"] > 0
    fields = {"data": data_of(home), "features": [str(home / "features")], "checkpoint": str(home / "combined")}
    assert run_evaluate(validate(EvaluateRun, {**fields, "out": str(home / "after")})).metrics["R@10"] > 0
    exported = run_export(ExportRun(model=str(home / "combined"), out=str(home / "export")))
    assert exported.extra["vision_digest"]
