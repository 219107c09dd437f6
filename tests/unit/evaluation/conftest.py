import numpy as np
import pytest
from PIL import Image

from cirray.data.benchmark import CirDataset, ImageTable, Protocol
from cirray.evaluation.measures import measure
from cirray.evaluation.metrics import NEVER, recall_by
from cirray.evaluation.report import ReportContent, ReportRow, TextSample
from cirray.evaluation.result import EvaluationResult
from cirray.types import Query, Ranking


def make_result(ranks, protocol="toy/test: 6 images", texts=None):
    """A result over images im-0 .. im-9 whose target is listed where its rank says."""
    queries, rankings = [], []
    for at, rank in enumerate(ranks):
        others = [f"im-{n}" for n in range(1, 10)]
        names = others[:]
        if rank < len(names):
            names.insert(rank, "im-0")
        text = texts[at] if texts else f"text {at}"
        queries.append(Query(f"q{at}", f"im-{1 + at % 9}", text, ("im-0",), edit=("add", "move")[at % 2]))
        scores = tuple(np.linspace(1.0 + at, 0.0, len(names)).tolist())
        rankings.append(Ranking(f"q{at}", tuple(names), scores))
    ranks = np.asarray(ranks, dtype=np.int64)
    edits = [query.edit for query in queries]
    return EvaluationResult(
        protocol, 10, tuple(queries), ranks, tuple(rankings),
        tuple(measure(f"R@{k}", ranks < k) for k in (1, 5)),
        recall_by(ranks, edits, (1, 5)), {"R@1": (0.1, 0.9), "R@5": (0.2, 1.0)}, 1.25,
    )  # fmt: skip


@pytest.fixture
def dataset(tmp_path):
    paths = {}
    for n in range(10):
        path = tmp_path / f"{n}.png"
        Image.new("RGB", (12, 12), (20 * n, 90, 120)).save(path)
        paths[f"im-{n}"] = str(path)
    return CirDataset("toy", ImageTable(paths), Protocol("toy"))


@pytest.fixture
def content(dataset):
    history = [{"step": step, "loss": 2.0 / step, "contrastive": 1.0 / step, "lr": 1e-3} for step in range(1, 9)]
    rows = (
        ReportRow("baseline", (make_result([3, 3, 0, 7]),), labels_used=0),
        ReportRow("ours", (make_result([0, 12, 0, NEVER]), make_result([0, 0, 0, NEVER])), (0, 1), 2000),
    )
    samples = (TextSample("im-1", "im-2", "paint it", True), TextSample("im-3", "im-4", "turn it", False))
    return ReportContent(rows, dataset, {"pretraining": history}, samples, {"checkpoint": "abc"}, shown=3)


@pytest.fixture(name="make_result")
def make_result_fixture():
    return make_result
