"""Measure a benchmark while a map from images to pseudo-words is trained, and keep the best weights. No ray."""

from collections.abc import Sequence

from cirray.core.errors import DataError
from cirray.data.benchmark import CirDataset
from cirray.data.readers import read_dataset
from cirray.evaluation.evaluate import evaluate_retriever
from cirray.evaluation.protocol_metrics import figure_names
from cirray.features.store import FeatureStore, check_tower
from cirray.models.words.word_map import WordMapRetriever
from cirray.pipelines.data.datasets import asked_digest
from cirray.pipelines.training.config import SPLIT
from cirray.pipelines.training.job import check_figures
from cirray.pipelines.zeroshot.config import MapRun
from cirray.training.loop import Callback
from cirray.training.selection import KeepBest, put_best
from cirray.training.state import LoopState, Row


class Benchmark(Callback):
    """Adds a data set's own figures to the history, as `val_R@1` and so on."""

    def __init__(self, retriever: WordMapRetriever, features: FeatureStore, dataset: CirDataset, every: int) -> None:
        """Take the queries, the features and the interval."""
        self._retriever, self._features, self._dataset, self._every = retriever, features, dataset, every

    def on_step(self, state: LoopState, row: Row | None) -> None:
        """Measure on schedule and at the end."""
        if row is None or not (state.finished or state.step % self._every == 0):
            return
        data = self._dataset
        result = evaluate_retriever(
            self._retriever, self._features, data.queries, data.gallery_ids, data.protocol, galleries=data.galleries
        )
        row.update({f"{SPLIT}{name}": value for name, value in result.metrics.items()})


class PutBest(Callback):
    """Puts the kept weights into the retriever after the last step."""

    def on_end(self, state: LoopState) -> None:
        """Put them, if some were kept."""
        with state.engine.full_weights() as model:
            put_best(state, model)


def measures_of(run: MapRun, retriever: WordMapRetriever, tower_digest: str) -> tuple[Callback, ...]:
    """Callbacks that measure a run's benchmark and keep the best weights by it; none without a benchmark.

    Raises ConfigError for a figure to keep by that the benchmark does not have; DataError for a query without target,
    or an image without features; IndexMismatchError when another tower made the features.
    """
    config = run.validation
    if config.data is None:
        return ()
    dataset, places = read_dataset(config.data), config.features or run.features
    features = FeatureStore.open_many(places)
    check_tower(places, features.info.encoder_digest, run.towers, tower_digest)
    check_figures(config.keep, [f"{SPLIT}{name}" for name in figure_names(dataset.protocol, dataset.queries)])
    searched = [image for ids in (dataset.gallery_ids, *dataset.galleries.values()) for image in ids]
    _present(features, [*searched, *(query.reference_id for query in dataset.queries)])
    keep = (KeepBest(config.keep, config.every), PutBest()) if config.keep else ()
    return (Benchmark(retriever, features, dataset, config.every), *keep)


def validation_inputs(run: MapRun) -> dict[str, str]:
    """Digest of the benchmark that measures a run."""
    data = run.validation.data
    return {} if data is None else {"validation.data": asked_digest(read_dataset(data))}


def _present(features: FeatureStore, images: Sequence[str]) -> None:
    missing = features.missing(list(dict.fromkeys(images)))
    if missing:
        raise DataError(
            f"{len(missing):,} images of the benchmark have no features, e.g. {missing[0]!r}. Embed them with the "
            "CLIP's tower, or set validation.data=null."
        )
