"""Run a study: every stage of every seed in one graph, then one report. Finished stages are not run again."""

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from cirray.core import storage
from cirray.core.artifacts import Manifest, check_place, is_complete, read_manifest
from cirray.core.contents import canonical
from cirray.core.errors import ArtifactError
from cirray.core.identity import named_places
from cirray.core.trees import Layer
from cirray.core.unfinished import stage_function
from cirray.pipelines.cluster.config import RayConfig
from cirray.pipelines.cluster.resources import cluster
from cirray.pipelines.cluster.schedule import Node, Watch, run_graph, run_here
from cirray.pipelines.cluster.watch import stage_lines
from cirray.pipelines.evaluation.config import CompareRun
from cirray.pipelines.study.config import StudyRun
from cirray.pipelines.study.graph import Assignment, Find, Graph, seed_root
from cirray.pipelines.study.report import Scoring, publish
from cirray.types import stable_id

_LEDGER = "finished.json"
_SCORE = "cirray.pipelines.evaluation.compare:run_compare"


@stage_function
def run_study(run: StudyRun, find: Find) -> Manifest:
    """Run what is missing and write the report.

    Returns: Manifest of kind "study": `report.html`, `table.txt`, `metrics.json`, curves; metrics hold the mean of
    every figure per row; `extra["table"]` is the text.

    Raises ConfigError for a study that names unknown things, before anything runs.
    """
    if run.out:
        check_place(run, "study")
    graphs, main = _main(run, find, run.seeds)
    curves = {
        name: [[_scoring(graph, spec.rows, spec.assignment(value)) for graph in graphs]
               for value in spec.values]
        for name, spec in ((name, run.curves[name]) for name in run.curve)
    }  # fmt: skip
    _run(run, graphs, [*main, *(item for points in curves.values() for point in points for item in point)])
    return publish(run, main, curves)


def study_nodes(run: StudyRun, find: Find) -> list[Node]:
    """The stages that the first seed's table needs, in order, with their resolved configs; nothing is run.

    Raises ConfigError as `run_study`.
    """
    (graph,), (scoring,) = _main(run, find, run.seeds[:1])
    return [*graph.nodes.values(), scoring.node]


def run_stages(run: StudyRun, find: Find, names: Iterable[str]) -> list[Node]:
    """Run some stages of the first seed and whatever they build on; what is finished is not run again.

    Returns: All of them.

    Raises ConfigError for an unknown stage, with the known ones.
    """
    graph = Graph(run, run.seeds[0], find)
    for name in names:
        graph.add(name)
    _run(run, [graph], [])
    return list(graph.nodes.values())


def _main(run: StudyRun, find: Find, seeds: Iterable[int]) -> tuple[list[Graph], list[Scoring]]:
    graphs = [Graph(run, seed, find) for seed in seeds]
    main = [_scoring(graph, run.rows or tuple(run.table), {}) for graph in graphs]
    for graph in graphs:
        for name in run.generators:
            graph.add(name)
    return graphs, main


def _scoring(graph: Graph, names: tuple[str, ...], values: Assignment) -> Scoring:
    run = graph.run
    rows = {name: run.table[name] for name in names}
    shapes = {} if values else {name: f"@{row.index}" for name, row in rows.items() if row.shapes}  # not along curves
    tree: dict[str, Any] = {
        "data": run.data, "features": run.features, "seed": graph.seed, "title": run.title, "triplets": run.samples,
        "judge": run.judge if run.samples or shapes else "", "row_shapes": shapes,
        **({"shape_queries": max(rows[name].shapes for name in shapes)} if shapes else {}),
        "checkpoints": {name: f"@{row.stage}" for name, row in rows.items() if row.stage},
        "encoders": {name: row.encoder for name, row in rows.items() if row.encoder is not None},
        "row_texts": {name: row.rewrites for name, row in rows.items() if row.rewrites},
        "row_rerank": {name: row.rerank for name, row in rows.items() if row.rerank},
        "row_features": {name: row.features for name, row in rows.items() if row.features},
    }  # fmt: skip
    read = graph.artifacts(CompareRun, [Layer(tree)])
    stages = [name for row in rows.values() for name in row.stages()]
    after = tuple(dict.fromkeys(graph.add(name, values) for name in (*read, *stages)))
    told = "score" + ("@" + ",".join(f"{key}={value}" for key, value in values.items()) if values else "")
    label = f"{told}-{stable_id('rows', *sorted(names))[:6]}"
    folder = seed_root(run, graph.seed)
    config = graph.config(CompareRun, [Layer({**tree, "out": storage.join(folder, run.scores or label)})], values)
    if run.scores and (values or _is_taken(config)):
        config = config.model_copy(update={"out": storage.join(folder, label)})
    return Scoring(graph, values, names, Node(config.out.rpartition("/")[2], _SCORE, config, after))


def _is_taken(config: CompareRun) -> bool:
    """Whether other scores stand there, of other rows for example."""
    try:
        check_place(config, "report")
    except ArtifactError:
        return True
    return False


def _run(run: StudyRun, graphs: list[Graph], scorings: list[Scoring]) -> None:
    pairs = [(node, graph) for graph in graphs for node in graph.nodes.values()]
    pairs += {(item.node.name, item.graph.seed): (item.node, item.graph) for item in scorings}.values()
    nodes = [_seeded(node, graph) if len(graphs) > 1 else node for node, graph in pairs]
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
    """Which stages have run, with which configuration and on which artifacts: they are not even looked at again."""

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
    """Over every field, and the digest of every artifact that is named: of a changed input a stage hears again."""
    read = {place: read_manifest(place).digest for place in set(named_places(node.config)) if is_complete(place)}
    return stable_id("stage", node.run, canonical(node.config.to_dict()), canonical(read))


def _seeded(node: Node, graph: Graph) -> Node:
    """The node under names that say the seed, which no two graphs share."""
    name, *after = (f"{name} ({graph.seed})" for name in (node.name, *node.after))
    return replace(node, name=name, after=tuple(after))
