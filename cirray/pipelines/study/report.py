"""A study's report from its finished artifacts: rows, accuracy of texts, verdicts, curves."""

import json
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cirray.core import storage
from cirray.core.artifacts import Manifest, open_stage, read_manifest
from cirray.core.contents import canonical
from cirray.core.errors import ConfigError, unknown_name
from cirray.evaluation.metrics import spread
from cirray.evaluation.plots import method_plot, save_figure
from cirray.evaluation.report import file_name
from cirray.evaluation.study import (
    Curve,
    StudyContent,
    StudyRow,
    Texts,
    Verdict,
    judge_claim,
    render_study,
    study_dict,
    study_page,
)
from cirray.pipelines.cluster.schedule import Node
from cirray.pipelines.evaluation.query_shapes import over_seeds, shapes_lines, shapes_title
from cirray.pipelines.study.config import ClaimSpec, CurveSpec, RowSpec, StudyRun
from cirray.pipelines.study.graph import Graph, seed_root
from cirray.types import stable_id

IMAGE_ONLY = "image only"
_UNCOUNTED = ("world", "towers", "embed")


@dataclass(frozen=True)
class Scoring:
    """One results table of one seed: the rows of the study, or those of a curve at one value."""

    graph: Graph
    values: Mapping[str, Any]
    rows: tuple[str, ...]
    node: Node

    @cached_property
    def result(self) -> Manifest:
        """Its report, read when first asked for."""
        return read_manifest(self.node.config.out, "report")


Points = Sequence[Sequence[Scoring]]
"""The scores of a curve, for each value one per seed."""


def publish(run: StudyRun, main: Sequence[Scoring], curves: Mapping[str, Points]) -> Manifest:
    """Write the report of a study whose stages are all finished."""
    rows = {name: _row(name, main) for name in (IMAGE_ONLY, *main[0].rows)}
    figures = {"R@1 by method": method_plot({name: row.metrics["R@1"] for name, row in rows.items()})}
    lines = {name: _curve(run.curves[name], points) for name, points in curves.items()}
    figures |= {line.title: line.figure() for line in lines.values()}
    content = StudyContent(
        run.title, tuple(rows.values()), main[0].result.extra["protocol"], run.seeds,
        (*_verdicts(run, rows, main), *curve_verdicts(run, lines)), figures, _facts(run),
        {f"seed {item.graph.seed}": _link(run, item) for item in main}, tuple(lines.values()), tuple(_texts(main)),
        dict(_shapes(main)),
    )  # fmt: skip
    return _write(run, content, [*main, *(item for points in curves.values() for point in points for item in point)])


def _row(name: str, scorings: Sequence[Scoring]) -> StudyRow:
    results = [item.result for item in scorings]
    metrics = {key: tuple(float(found.metrics[name][key]) for found in results) for key in results[0].metrics[name]}
    if name == IMAGE_ONLY:
        return StudyRow(name, metrics)
    row = scorings[0].graph.run.table[name]
    return StudyRow(
        name, metrics, _labels(row, scorings[0]) if row.labelled else 0,
        tuple(sum(found.seconds for found in _way(row, item).values()) for item in scorings),
        tuple(_exact(row, item) for item in scorings) if row.texts else (), row.source,
    )  # fmt: skip


def _labels(row: RowSpec, scoring: Scoring) -> int:
    """The variable `labels`, or if it is null (all), the number counted by the row's stages."""
    known = scoring.graph.run.variables
    if known.get("labels", 0) is not None or not row.stage:
        return int(scoring.graph.fill("$labels", scoring.values) if "labels" in known else 0)
    return max(found.counts.get("human", found.counts.get("labels", 0)) for found in _way(row, scoring).values())


def _way(row: RowSpec, scoring: Scoring) -> dict[str, Manifest]:
    """A row's stages without those that all rows share: world, towers, features."""
    if not row.stage:
        return {}
    graph = scoring.graph
    names = sorted(graph.closure(graph.name(row.stage, scoring.values)))
    counted = [name for name in names if graph.run.stages[name.partition("@")[0]].verb not in _UNCOUNTED]
    return {name: read_manifest(graph.nodes[name].config.out) for name in counted}


def _exact(row: RowSpec, scoring: Scoring) -> float:
    found = figure(read_manifest(scoring.graph.place(row.texts, scoring.values), "triplets"), "exact")
    if found is None:
        raise ConfigError(f"The texts of stage {row.texts!r} were not judged; give that stage `judge: '@world'`.")
    return found


def _texts(scorings: Sequence[Scoring]) -> Iterator[Texts]:
    """Accuracy of the texts of every generator and every triplets artifact that was judged."""
    first = scorings[0].graph
    for name in (name for name in first.nodes if "@" not in name):
        found = [read_manifest(item.graph.nodes[name].config.out) for item in scorings]
        about = first.run.stages[name].about or name
        triplets = tuple(manifest.counts.get("triplets", 0) for manifest in found)
        for words, paths in (
            (f"{about}, before any label", ("zero_shot.forward.exact", "zero_shot.reverse.exact")),
            (about, ("trained.forward.exact", "trained.reverse.exact")),
            (about, ("exact",)),
        ):
            shares = tuple(_figures(found, path) for path in paths)
            if found[0].kind in ("generator", "triplets") and all(shares):
                yield Texts(words, shares, triplets)


def _shapes(scorings: Sequence[Scoring]) -> Iterator[tuple[str, list[list[str]]]]:
    """A table of each row that is asked in every shape of query."""
    for name in scorings[0].rows:
        if scorings[0].graph.run.table[name].shapes:
            rows = over_seeds([item.result.extra["shapes"][name] for item in scorings])
            yield shapes_title(name), shapes_lines(rows)


def figure(manifest: Manifest, path: str) -> float | None:
    """A number of a manifest's metrics by its dotted path; None where there is none."""
    node: Any = manifest.metrics
    for name in path.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return float(node) if isinstance(node, int | float) else None


def _figures(manifests: Sequence[Manifest], path: str) -> tuple[float, ...]:
    """That number of each manifest; empty if one lacks it."""
    found = [value for value in (figure(manifest, path) for manifest in manifests) if value is not None]
    return tuple(found) if len(found) == len(manifests) else ()


def _verdicts(run: StudyRun, rows: Mapping[str, StudyRow], main: Sequence[Scoring]) -> Iterator[Verdict]:
    for claim in run.claims:
        own = rows.get(claim.row) or _stage_row(claim, main)
        if own is None or not all(name in rows for name in claim.rows()[1:]):
            continue
        if claim.metric not in own.metrics:
            raise ConfigError(f"Claim {claim.text!r}: {unknown_name('figure', claim.metric, own.metrics)}")
        others = [rows[name] for name in claim.over]
        if claim.least is not None:
            others = [StudyRow(f"{100 * claim.least:g} %", {claim.metric: (claim.least,) * len(main)})]
        upper = rows[claim.of] if claim.of else None
        yield judge_claim(claim.text, own, others, claim.metric, claim.points, claim.relative, claim.share, upper)


def _stage_row(claim: ClaimSpec, main: Sequence[Scoring]) -> StudyRow | None:
    """The figure of a stage as a row; None for a stage that was not run."""
    if not all(claim.row in item.graph.nodes for item in main):
        return None
    values = _figures([read_manifest(item.graph.nodes[claim.row].config.out) for item in main], claim.metric)
    return StudyRow(claim.row, {claim.metric: values} if values else {})


def curve_verdicts(run: StudyRun, curves: Mapping[str, Curve]) -> Iterator[Verdict]:
    """A verdict at every value of a claim over another row, one for a claim of the best value."""
    for name, curve in curves.items():
        spec = run.curves[name]
        for claim in spec.claims:
            own = dict(zip(spec.values, curve.rows(claim.row), strict=True))
            if claim.best is not None:
                others = [row for value, row in own.items() if value != claim.best]
                yield judge_claim(claim.text, own[claim.best], others, spec.metric, claim.points)
                continue
            for row, other in zip(own.values(), curve.rows(claim.over), strict=True):
                yield judge_claim(claim.text, row, [other], spec.metric, claim.points)


def _curve(spec: CurveSpec, points: Points) -> Curve:
    found = {
        name: tuple(
            (float(value or 0), tuple(float(item.result.metrics[name][spec.metric]) for item in point))
            for value, point in zip(spec.values, points, strict=True)
        )
        for name in spec.rows
    }
    label = spec.x_label or spec.variable
    return Curve(f"{spec.metric} over {label}", label, spec.metric, found, spec.scale)


def _facts(run: StudyRun) -> dict[str, str]:
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": f"{platform.machine()}, {run.slots} stages side by side",
        "seeds": ", ".join(str(seed) for seed in run.seeds),
        "variables": ", ".join(f"{name} {value}" for name, value in run.variables.items()) or "none",
    }


def _link(run: StudyRun, item: Scoring) -> str:
    place = item.node.config.out
    root = run.root.rstrip("/") + "/"
    return (
        f"../{place.removeprefix(root)}/report.html"
        if not run.out and place.startswith(root)
        else f"{place}/report.html"
    )


def _write(run: StudyRun, content: StudyContent, scorings: Sequence[Scoring]) -> Manifest:
    inputs = {f"{item.node.name} ({item.graph.seed})": item.result.digest for item in scorings}
    label = stable_id("study", canonical(run.identity()), *inputs.values())[:8]
    out = run.out or storage.join(run.root, f"study-{label}")
    stage = open_stage(run.model_copy(update={"out": out}), "study", inputs)
    if stage.finished:
        return stage.finished
    table = render_study(content)
    (stage.local / "metrics.json").write_text(json.dumps(study_dict(content), indent=2) + "\n", encoding="utf-8")
    (stage.local / "table.txt").write_text(table + "\n", encoding="utf-8")
    (stage.local / "report.html").write_text(study_page(content), encoding="utf-8")
    for name, picture in content.figures.items():
        save_figure(picture, stage.local / f"{file_name(name)}.png")
    metrics = {row.name: {key: spread(values).mean for key, values in row.metrics.items()} for row in content.rows}
    counts = {"rows": len(content.rows), "seeds": len(run.seeds), "claims": len(content.verdicts)}
    return stage.publish(counts, metrics, {"table": table, "out": out, **_places(scorings[0])})


def _places(scoring: Scoring) -> dict[str, Any]:
    """Facts about the first seed: folder, page, last index, times of the longest stages."""
    graph = scoring.graph
    nodes = {name: read_manifest(node.config.out) for name, node in graph.nodes.items()}
    longest = sorted(((found.seconds, name) for name, found in nodes.items()), reverse=True)[:6]
    indexes = [graph.run.table[name].index for name in scoring.rows if graph.run.table[name].index]
    found: dict[str, Any] = {"scores": scoring.node.config.out, "longest": {name: seconds for seconds, name in longest}}
    if indexes:
        index = graph.nodes[indexes[-1]].config
        asked = nodes[indexes[-1]].extra.get("examples") or [None]
        found["search"] = {"root": seed_root(graph.run, graph.seed), "index": index.out, "checkpoint": index.checkpoint,
                           "query": asked[0]}  # fmt: skip
    return found
