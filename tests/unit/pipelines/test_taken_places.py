"""A place that something else has taken is told before any work, in the verbs that know their inputs only later."""

import pytest

from cirray.core.errors import ArtifactError
from cirray.pipelines.search import index
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.study import run as study
from cirray.pipelines.study.config import StudyRun
from cirray.pipelines.training import train
from cirray.pipelines.training.config import PretrainRun
from cirray.pipelines.zeroshot import map as mapping
from cirray.pipelines.zeroshot.config import MapRun


def worked(*args, **fields):
    pytest.fail("worked first")


@pytest.mark.parametrize(
    ("module", "name", "start"),
    [
        (index, "make_plan", lambda out: index.run_index(IndexRun(out=out))),
        (train, "read_inputs", lambda out: train.run_train(PretrainRun(out=out))),
        (mapping, "read_usable", lambda out: mapping.run_map(MapRun(out=out))),
        (study, "Graph", lambda out: study.run_study(StudyRun(out=out), worked)),
    ],
    ids=["index", "train", "map", "study"],
)
def test_a_folder_that_is_no_artifact_is_told_before_the_work(tmp_path, monkeypatch, module, name, start):
    (tmp_path / "photos").mkdir()
    monkeypatch.setattr(module, name, worked)
    with pytest.raises(ArtifactError, match="photos' exists but is no artifact"):
        start(str(tmp_path / "photos"))
