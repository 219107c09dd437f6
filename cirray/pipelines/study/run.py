"""Run a study: every stage of every seed in one graph, then one report. Finished stages are not run again."""

import json
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from cirray.core import storage
from cirray.core.artifacts import Manifest, check_place, is_complete, open_stage, read_manifest
from cirray.core.config import validate
from cirray.core.contents import canonical
from cirray.core.errors import ConfigError
from cirray.core.unfinished import stage_function
from cirray.evaluation.metrics import spread
from cirray.evaluation.plots import method_plot, save_figure
from cirray.evaluation.report import file_name
from cirray.evaluation.study import (
    Curve,
    StudyContent,
    StudyRow,
    Verdict,
    judge_claim,
    render_study,
    study_dict,
    study_page,
)
from cirray.pipelines.cluster.config import RayConfig
from cirray.pipelines.cluster.resources import cluster
from cirray.pipelines.cluster.schedule import Node, Watch, run_graph, run_here
from cirray.pipelines.cluster.watch import stage_lines
from cirray.pipelines.evaluation.config import CompareRun
from cirray.pipelines.study.config import CurveSpec, RowSpec, StudyRun
from cirray.pipelines.study.graph import Assignment, Find, Graph, references, seed_root
from cirray.types import stable_id

IMAGE_ONLY = "image only"
_LEDGER = "finished.json"
_UNCOUNTED = ("world", "towers", "embed")
_SCORE = "cirray.pipelines.evaluation.compare:run_compare"


@dataclass(frozen=True)
class Scoring:
    """One results table of one seed: the rows of the study, or those of a curve at one value."""

    graph: Graph
    values: Mapping[str, Any]
    rows: tuple[str, ...]
    node: Node

    @cached_property
    def result(self) -> Manifest:
        """Its report, read once it stands."""
        return read_manifest(self.node.config.out, "report")


@stage_function
def run_study(run: StudyRun, find: Find) -> Manifest:
    """Run what is missing and write the report.

    Args:
        run: the study.
        find: verb -> its config class and function.

    Returns:
        Manifest of kind "study": `report.html`, `table.txt`, `metrics.json`, curves; metrics hold the mean of every
        figure per row; `extra["table"]` is the text.

    Raises:
        ConfigError: for a study that names unknown things, before anything runs.
    """
    if run.out:
        check_place(run.out, "study", {"study": run.to_dict()})
    names = run.rows or tuple(run.table)
    graphs = [Graph(run, seed, find) for seed in run.seeds]
    main = [_scoring(graph, names, {}) for graph in graphs]
    curves = {
        name: [[_scoring(graph, spec.rows, spec.assignment(value)) for graph in graphs]
               for value in spec.values]
        for name, spec in ((name, run.curves[name]) for name in run.curve)
    }  # fmt: skip
    everything = [*main, *(item for points in curves.values() for point in points for item in point)]
    _run(run, graphs, {item.node.name: item for item in everything})
    rows = {name: _row(name, main) for name in (IMAGE_ONLY, *names)}
    figures = {"R@1 by method": method_plot({name: row.metrics["R@1"] for name, row in rows.items()})}
    lines = {name: _curve(run.curves[name], points) for name, points in curves.items()}
    figures |= {line.title: line.figure() for line in lines.values()}
    content = StudyContent(
        run.title, tuple(rows.values()), main[0].result.extra["protocol"], run.seeds,
        (*_verdicts(run, rows), *_curve_verdicts(run, lines)), figures, _facts(run),
        {f"seed {item.graph.seed}": _link(run, item) for item in main}, tuple(lines.values()),
    )  # fmt: skip
    return _publish(run, content, everything)


def study_nodes(run: StudyRun, find: Find) -> list[str]:
    """Names of the stages that the first seed's table needs, in order; a check of the whole file without running it."""
    graph = Graph(run, run.seeds[0], find)
    scoring = _scoring(graph, run.rows or tuple(run.table), {})
    return [*graph.nodes, scoring.node.name]


def _scoring(graph: Graph, names: tuple[str, ...], values: Assignment) -> Scoring:
    run = graph.run
    rows = {name: run.table[name] for name in names}
    stages = [name for row in rows.values() for name in (row.stage, row.texts) if name]
    fields: dict[str, Any] = {
        "data": graph.fill(run.data, values), "features": graph.fill(run.features, values), "seed": graph.seed,
        "checkpoints": {name: graph.place(row.stage, values) for name, row in rows.items() if row.stage},
        "duals": {name: graph.fill(row.dual, values) for name, row in rows.items() if row.dual is not None},
        "row_texts": {name: graph.fill(row.rewrites, values) for name, row in rows.items() if row.rewrites},
        "row_features": {name: graph.fill(row.features, values) for name, row in rows.items() if row.features},
        "title": run.title, "judge": "",
    }  # fmt: skip
    own = [[list(row.features), row.rewrites, row.dual or {}] for row in rows.values()]
    needed = [*stages, *references([run.data, run.features]), *references(own)]
    after = tuple(dict.fromkeys(graph.add(name, values) for name in needed))
    told = ",".join(f"{key}={value}" for key, value in values.items())
    name = f"score@{told}" if told else "score"
    label = stable_id("rows", *sorted(names))[:6]
    out = storage.join(seed_root(run, graph.seed), f"{name}-{label}")
    config = validate(CompareRun, {**fields, "out": out})
    return Scoring(graph, values, names, Node(f"{name}-{label} ({graph.seed})", _SCORE, config, after))


def _run(run: StudyRun, graphs: list[Graph], scorings: Mapping[str, Scoring]) -> None:
    nodes = [
        replace(node, name=_seeded(node.name, graph), after=tuple(_seeded(name, graph) for name in node.after))
        for graph in graphs
        for node in graph.nodes.values()
    ]
    nodes += [
        replace(item.node, after=tuple(_seeded(name, item.graph) for name in item.node.after))
        for item in scorings.values()
    ]
    ledger = Ledger(run.root)
    todo = [node for node in nodes if not ledger.has(node)]
    waiting = {node.name for node in todo}
    todo = [replace(node, after=tuple(name for name in node.after if name in waiting)) for node in todo]
    if not todo:
        return
    if not run.ray:
        run_here(todo)
        ledger.add(todo)
        return
    with cluster(RayConfig()), stage_lines([node.name for node in todo]) as watch:
        run_graph(todo, run.slots, ledger.watching(watch, todo))
    ledger.add(todo)


class Ledger:
    """Which stages have run with which configuration: they are not even looked at again."""

    def __init__(self, root: str) -> None:
        """Read what an earlier run left."""
        self._uri = storage.join(root, _LEDGER)
        self._known: dict[str, str] = json.loads(storage.read_bytes(self._uri)) if storage.exists(self._uri) else {}

    def has(self, node: Node) -> bool:
        """Whether this very stage has finished and its artifact still stands."""
        return self._known.get(node.config.out) == _digest(node) and is_complete(node.config.out)

    def add(self, nodes: list[Node]) -> None:
        """Note finished stages."""
        self._known |= {node.config.out: _digest(node) for node in nodes}
        storage.write_bytes(self._uri, (json.dumps(self._known, indent=1, sort_keys=True) + "\n").encode())

    def watching(self, watch: Watch, nodes: list[Node]) -> Watch:
        """`watch`, noting every stage as it finishes."""
        waiting = {node.name: node for node in nodes}

        def told(stage: str, title: str, done: int, total: int | None, note: str) -> None:
            if not title and stage in waiting:
                self.add([waiting.pop(stage)])
            watch(stage, title, done, total, note)

        return told


def _digest(node: Node) -> str:
    """Over what differs from the defaults, so that a field added in a later version does not undo what is done."""
    return stable_id("stage", node.run, canonical(node.config.changed()))


def _seeded(name: str, graph: Graph) -> str:
    return f"{name} ({graph.seed})"


def _row(name: str, scorings: list[Scoring]) -> StudyRow:
    results = [item.result for item in scorings]
    metrics = {key: tuple(float(found.metrics[name][key]) for found in results) for key in results[0].metrics[name]}
    if name == IMAGE_ONLY:
        return StudyRow(name, metrics)
    run = scorings[0].graph.run
    row = run.table[name]
    labels = scorings[0].graph.fill("$labels", scorings[0].values) if row.labelled and "labels" in run.variables else 0
    return StudyRow(
        name, metrics, int(labels), tuple(_seconds(row, item) for item in scorings),
        tuple(_texts(row, item) for item in scorings) if row.texts else (), row.source,
    )  # fmt: skip


def _seconds(row: RowSpec, scoring: Scoring) -> float:
    """All stages on the way but those that every row shares: world, towers, features."""
    if not row.stage:
        return 0.0
    graph = scoring.graph
    names = graph.closure(graph.name(row.stage, scoring.values))
    counted = [name for name in names if graph.run.stages[name.partition("@")[0]].verb not in _UNCOUNTED]
    return sum(read_manifest(graph.nodes[name].config.out).seconds for name in counted)


def _texts(row: RowSpec, scoring: Scoring) -> float:
    metrics = read_manifest(scoring.graph.place(row.texts, scoring.values), "triplets").metrics
    if "exact" not in metrics:
        raise ConfigError(f"The texts of stage {row.texts!r} were not judged; give that stage `judge: '@world'`.")
    return float(metrics["exact"])


def _verdicts(run: StudyRun, rows: Mapping[str, StudyRow]) -> tuple[Verdict, ...]:
    return tuple(
        judge_claim(claim.text, rows[claim.row], [rows[name] for name in claim.over], claim.metric, claim.points,
                    claim.relative)
        for claim in run.claims
        if claim.row in rows and all(name in rows for name in claim.over)
    )  # fmt: skip


def _curve_verdicts(run: StudyRun, curves: Mapping[str, Curve]) -> Iterator[Verdict]:
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


def _curve(spec: CurveSpec, points: list[list[Scoring]]) -> Curve:
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


def _publish(run: StudyRun, content: StudyContent, scorings: list[Scoring]) -> Manifest:
    inputs = {item.node.name: item.result.digest for item in scorings}
    label = stable_id("study", canonical(run.changed()), *inputs.values())[:8]
    out = run.out or storage.join(run.root, f"report-{label}")
    stage = open_stage(out, "study", {"study": run.to_dict()}, inputs)
    if stage.finished:
        return stage.finished
    table = render_study(content)
    (stage.local / "metrics.json").write_text(json.dumps(study_dict(content), indent=2) + "\n", encoding="utf-8")
    (stage.local / "table.txt").write_text(table + "\n", encoding="utf-8")
    (stage.local / "report.html").write_text(study_page(content), encoding="utf-8")
    for name, figure in content.figures.items():
        save_figure(figure, stage.local / f"{file_name(name)}.png")
    metrics = {row.name: {key: spread(values).mean for key, values in row.metrics.items()} for row in content.rows}
    counts = {"rows": len(content.rows), "seeds": len(run.seeds), "claims": len(content.verdicts)}
    return stage.publish(counts, metrics, {"table": table, "out": out})
