"""Metrics of the service: recorded in the replicas through Ray, whose agents export them on every node.

`/metrics` answers with what all nodes' agents export of the service, so that one address is enough for a Prometheus
whichever replica it reaches, and every replica is in it, told apart by the label `replica`.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import httpx
import ray
from fastapi import FastAPI
from ray.serve import metrics
from starlette.responses import Response

from cirray.types import Ranking, StepTimes

_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_PORT, _ADDRESS = "MetricsExportPort", "NodeManagerAddress"
_PREFIXES = ("ray_cirray_", "ray_serve_")
TIMEOUT_S = 5.0
GALLERY = "gallery"
"""Label of every metric: the gallery's name."""


@dataclass(frozen=True)
class Metric:
    """One metric: its name (Ray puts `ray_` before it), what it says, and its label."""

    name: str
    text: str
    label: str = ""
    bounds: tuple[int, ...] = ()
    """Upper bounds of a histogram's buckets."""


PHASE = Metric(
    "cirray_search_ms",
    "Milliseconds of a search's steps; those answered together share all but `decode` and `answer`.",
    "phase",
    _MS,
)
BATCH = Metric("cirray_batch_size", "Queries in one pass through the model.", bounds=(1, 2, 4, 8, 16, 32, 64))
WAITING = Metric("cirray_waiting_queries", "Queries that waited for the model when a pass began.")
REFERENCES = Metric(
    "cirray_references", "Reference images of searches: `kept` from an earlier one, or `encoded`.", "how"
)
IMAGES = Metric("cirray_index_images", "Images in the index.")
VERSION = Metric(
    "cirray_index_version", "Version of the gallery's table that this replica shows; 0 for a frozen index."
)
FAILED = Metric("cirray_failed_polls", "Looks at the gallery's table in a row that its store refused.")
METRICS = (PHASE, BATCH, WAITING, REFERENCES, IMAGES, VERSION, FAILED)
"""Every metric of this package."""


class Meters:
    """What one replica records."""

    def __init__(self, gallery: str) -> None:
        """Nothing is recorded yet of a gallery by its name; belongs to a replica's process."""
        self._phase, self._batch = _histogram(PHASE), _histogram(BATCH)
        gauges = [_gauge(metric) for metric in (WAITING, IMAGES, VERSION, FAILED)]
        self._waiting, self._images, self._version, self._failed = gauges
        self._references = metrics.Counter(REFERENCES.name, REFERENCES.text, _labels(REFERENCES))
        for metric in (self._phase, self._batch, *gauges, self._references):
            metric.set_default_tags({GALLERY: gallery})
        self._counted = (0, 0)

    def answered(self, milliseconds: float) -> None:
        """A query was answered, after waiting for its pass and being in it."""
        self._phase.observe(milliseconds, {PHASE.label: "answer"})

    def passed(self, answers: Sequence[Ranking | Exception], waiting: int, references: tuple[int, int]) -> None:
        """A pass through the model is over.

        Args:
            answers: of its queries.
            waiting: queries that waited for it to begin, beyond its own.
            references: images that were kept, and encoded, since the replica started.
        """
        self._batch.observe(len(answers))
        self._waiting.set(waiting)
        times = [answer.times for answer in answers if isinstance(answer, Ranking) and answer.times]
        for phase, milliseconds in _steps(times):
            self._phase.observe(milliseconds, {PHASE.label: phase})
        for how, before, now in zip(("kept", "encoded"), self._counted, references, strict=True):
            if now > before:
                self._references.inc(now - before, {REFERENCES.label: how})
        self._counted = references

    def state(self, waiting: int, images: int, version: int, failed: int) -> None:
        """What is so now; told again and again, since the exporter drops a gauge that nobody tells.

        Args:
            waiting: queries that wait for the model.
            images: of the index.
            version: of its table that it shows.
            failed: looks at the table in a row that its store refused.
        """
        self._waiting.set(waiting)
        self._images.set(images)
        self._version.set(version)
        self._failed.set(failed)


def _steps(times: Sequence[StepTimes]) -> Iterable[tuple[str, float]]:
    """Steps with their times: each query's own decoding, and once what they share."""
    for one in times:
        if one.decode:
            yield "decode", one.decode
    for phase, milliseconds in asdict(times[0]).items() if times else ():
        if phase != "decode" and (milliseconds or phase != "rerank"):
            yield phase, milliseconds


def _labels(metric: Metric) -> Any:
    """As Ray takes them: a tuple of any length, though its annotation says one."""
    return tuple(filter(None, (metric.label, GALLERY)))


def _histogram(metric: Metric) -> metrics.Histogram:
    return metrics.Histogram(metric.name, metric.text, list(metric.bounds), _labels(metric))


def _gauge(metric: Metric) -> metrics.Gauge:
    return metrics.Gauge(metric.name, metric.text, _labels(metric))


def add_metrics(app: FastAPI) -> None:
    """The route of a replica at which a Prometheus finds the metrics of all."""

    @app.get("/metrics", include_in_schema=False)
    async def exported() -> Response:
        nodes: list[dict[str, Any]] = await asyncio.to_thread(ray.nodes)
        places = [f"http://{node[_ADDRESS]}:{node[_PORT]}/metrics" for node in nodes if node["Alive"]]
        async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
            replies = await asyncio.gather(*map(client.get, places), return_exceptions=True)
        texts = [reply.text for reply in replies if isinstance(reply, httpx.Response) and reply.status_code == 200]
        return Response(merged(texts), media_type="text/plain; version=0.0.4; charset=utf-8")


def merged(texts: Sequence[str]) -> str:
    """The service's metrics of several exporters as one text: each family's samples stand together, once described."""
    families: dict[str, list[str]] = {}
    for number, text in enumerate(texts):
        family: list[str] = []
        for line in text.splitlines():
            if line.startswith("# HELP "):
                name = line.split(" ", 3)[2]
                family = families.setdefault(name, []) if name.startswith(_PREFIXES) else []
                if family:
                    continue
            elif line.startswith("# TYPE ") and number and any(held.startswith("# TYPE ") for held in family):
                continue
            family.append(line)
    return "".join(f"{line}\n" for family in families.values() for line in family)
