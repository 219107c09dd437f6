"""The whole story on the embedded world: which stage reads what, in which order, and which rows the table has.

A story is a chain of artifacts below one root. A finished stage is recognised and skipped, a killed one goes on; stages
that do not build on each other run side by side.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cirray.core import storage
from cirray.core.artifacts import is_complete, read_manifest
from cirray.core.config import Config, load_config, merged
from cirray.core.errors import ConfigError, unknown_name
from cirray.core.log import get_logger
from cirray.pipelines.cluster.config import RayConfig
from cirray.pipelines.cluster.resources import cluster
from cirray.pipelines.cluster.schedule import Node, Outcome, run_graph, run_here
from cirray.pipelines.cluster.watch import stage_lines
from cirray.pipelines.data.config import WorldRun
from cirray.pipelines.evaluation.config import CompareRun
from cirray.pipelines.features.config import EmbedRun, TowersRun
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.study.config import StoryRun
from cirray.pipelines.texts.config import CheckRun, GenerateRun, GeneratorRun, MineRun, OracleRun
from cirray.pipelines.training.config import FinetuneRun, PretrainRun

IMAGE_ONLY, SERVED = "image only", "MTST + fine-tuning"


@dataclass(frozen=True)
class Recipe:
    """One stage of the story: its config class, its function, its own fields, what it waits for, the cores it uses."""

    config: type[Config]
    run: str
    fields: Mapping[str, Any]
    after: tuple[str, ...] = ()
    slots: int = 1


@dataclass(frozen=True)
class Row:
    """One line of the results table: the checkpoint that is scored, and the training stages it took."""

    stage: str
    trained: tuple[str, ...]
    labelled: bool = True


ROWS: dict[str, Row] = {
    "text only": Row("text_only", ("text_only",), labelled=False),
    "labelled only (equal compute)": Row("labelled_equal", ("labelled_equal",)),
    "labelled only (saturated)": Row("labelled", ("labelled",)),
    "MTST only": Row("pretrained", ("pretrained",), labelled=False),
    "oracle texts + fine-tuning": Row("oracle_finetuned", ("oracle_pretrained", "oracle_finetuned")),
    "MTST + PTHA": Row("ptha", ("pretrained", "ptha")),
    "MTST + fine-tuning": Row("checkpoint", ("pretrained", "checkpoint")),
}
"""In the table's order; the last row's queries are shown with pictures, and its checkpoint is indexed and served."""


_ALL_PASSES = ["reference", "target", "difference"]
GENERATORS: dict[str, dict[str, Any]] = {
    "LoRA": {"tuning": "lora"},
    "tuned": {"tuning": "full"},
    "three passes": {"passes": _ALL_PASSES},
    "three passes tuned": {"passes": _ALL_PASSES, "tuning": "full"},
}
"""Model fields of generators beside the method's own (language model frozen), which writes the texts."""


@dataclass(frozen=True)
class StoryResult:
    """What a story made: recalls (fractions) by row, text accuracy, seconds by stage and in all, places of things."""

    root: str
    seed: int
    labels: int
    recalls: dict[str, dict[str, float]]
    text: dict[str, Any]
    seconds: dict[str, float]
    wall: float
    protocol: str
    places: dict[str, str] = field(default_factory=dict)
    query: tuple[str, str] | None = None
    """A query (reference id, text) that the index answers rightly."""


def run_story(run: StoryRun) -> StoryResult:
    """Run every stage that is missing and collect the table.

    Raises:
        ConfigError: an unknown row or stage.
    """
    begin = time.monotonic()
    served = not run.rows or SERVED in run.rows
    wanted = ("report", "index") if served else ("report",)
    outcomes = run_stages(run, (*wanted, *(_generator_stage(name) for name in run.generators)))
    return collect(run, outcomes, time.monotonic() - begin)


def run_stages(run: StoryRun, wanted: Iterable[str]) -> dict[str, Outcome]:
    """Run some stages and whatever they build on; finished ones take no time.

    Raises:
        ConfigError: for an unknown stage, with the known ones.
    """
    nodes = story_nodes(run, wanted)
    if not run.ray:
        return run_here(nodes)
    with cluster(RayConfig()), stage_lines([node.name for node in nodes]) as watch:
        return run_graph(nodes, run.slots, watch)


def story_nodes(run: StoryRun, wanted: Iterable[str]) -> list[Node]:
    """The stages to run, prerequisites first, with their resolved configs."""
    recipes = story_recipes(run)
    for name in (*wanted, *run.stages):
        if name not in recipes:
            raise ConfigError(unknown_name("stage of the story", name, recipes))
    needed = _closure(recipes, wanted)
    return [
        Node(name, recipe.run, _config(run, name, recipe), recipe.after, recipe.slots)
        for name, recipe in recipes.items()
        if name in needed
    ]


def story_recipes(run: StoryRun) -> dict[str, Recipe]:
    """Every stage of the story by name, in an order in which each comes after what it reads."""
    return {**_data_recipes(run), **_training_recipes(run), **_result_recipes(run)}


def collect(run: StoryRun, outcomes: Mapping[str, Outcome], wall: float) -> StoryResult:
    """The table's figures from the finished artifacts."""
    report = read_manifest(_at(run, "report"), "report")
    text = {"generator": read_manifest(_at(run, "generator"), "generator").metrics}
    for name in run.generators:
        text[name] = read_manifest(_at(run, _generator_stage(name)), "generator").metrics
    for name in ("synthetic", "checked", "reverse"):
        if name in outcomes:
            written = read_manifest(_at(run, name), "triplets")
            text[name] = {**written.metrics, "triplets": written.counts["triplets"]}
    recalls = {name: {key: float(value) for key, value in row.items()} for name, row in report.metrics.items()}
    labels = int(read_manifest(_at(run, "generator")).counts["labels"])
    seconds = {name: outcome.seconds for name, outcome in outcomes.items()}
    places = {name: _at(run, name) for name in ("report", "checkpoint", "index")}
    protocol, query = report.extra["protocol"], _query(places["index"])
    return StoryResult(run.root, run.seed, labels, recalls, text, seconds, wall, protocol, places, query)


def _query(index: str) -> tuple[str, str] | None:
    """The clearest of the queries that an index answers rightly; None without an index or such a query."""
    asked = read_manifest(index, "index").extra.get("examples") if is_complete(index) else None
    return (str(asked[0][0]), str(asked[0][1])) if asked else None


def _data_recipes(run: StoryRun) -> dict[str, Recipe]:
    data = {"format": "folder", "folder": {"root": _at(run, "world")}}
    features, towers = [_at(run, "features")], _at(run, "towers")
    trained = {
        "data": data, "towers": towers, "features": features, "labels": run.labels, "seed": run.seed,
        "training": {"seed": run.seed}, "alignment_training": {"seed": run.seed},
    }  # fmt: skip
    generate = {"features": features, "generator": _at(run, "generator"), "judge": _at(run, "world"), "seed": run.seed}
    return {
        "world": Recipe(WorldRun, "cirray.pipelines.data.world:run_world", {"shapes": {"seed": run.seed}}),
        "towers": Recipe(TowersRun, "cirray.pipelines.features.towers:run_towers", {"data": data}),
        "features": Recipe(
            EmbedRun,
            "cirray.pipelines.features.embed:run_embed",
            {"data": data, "tower": towers},
            ("world", "towers"),
            2,
        ),
        "generator": Recipe(GeneratorRun, "cirray.pipelines.texts.generator:run_generator", trained, ("features",)),
        **{
            _generator_stage(name): Recipe(
                GeneratorRun, "cirray.pipelines.texts.generator:run_generator",
                {**trained, "model": model, "zero_shot": False}, ("features",),
            )
            for name, model in GENERATORS.items()
        },
        "pairs": Recipe(
            MineRun, "cirray.pipelines.texts.mine:run_mine",
            {"data": data, "features": features, "mining": {"rank_high": 1, "seed": run.seed}}, ("features",),
        ),
        "synthetic": Recipe(
            GenerateRun, "cirray.pipelines.texts.generate:run_generate", {**generate, "pairs": _at(run, "pairs")},
            ("generator", "pairs"),
        ),
        "labelled_pairs": Recipe(
            MineRun, "cirray.pipelines.texts.mine:run_mine", {"data": data, "features": features, "parts": ["labelled"],
            "mining": {"policy": "existing", "seed": run.seed}}, ("features",),
        ),
        "reverse": Recipe(
            GenerateRun, "cirray.pipelines.texts.generate:run_generate",
            {**generate, "pairs": _at(run, "labelled_pairs"), "source": "reverse"}, ("generator", "labelled_pairs"),
        ),
        "oracle": Recipe(
            OracleRun, "cirray.pipelines.texts.oracle:run_oracle",
            {"triplets": _at(run, "synthetic"), "world": _at(run, "world"), "seed": run.seed}, ("synthetic",),
        ),
    }  # fmt: skip


def _training_recipes(run: StoryRun) -> dict[str, Recipe]:
    base = {
        "data": {"format": "folder", "folder": {"root": _at(run, "world")}}, "features": [_at(run, "features")],
        "towers": _at(run, "towers"), "model": MODEL,
    }  # fmt: skip

    def recipe(cls: type[Config], after: tuple[str, ...], training: Mapping[str, Any], **fields: Any) -> Recipe:
        tree = {**base, "training": {"seed": run.seed, **training}, "ray": {"enabled": False}, **fields}
        return Recipe(cls, "cirray.pipelines.training.train:run_train", tree, after)

    labelled: dict[str, Any] = {"init": "", "reverse_texts": [], "labels": run.labels}
    tuned: dict[str, Any] = {"labels": run.labels, "reverse_texts": []}
    pretrained = {"init": _at(run, "pretrained")}
    workers = {"ray": {"enabled": run.ray, "num_workers": 2}} if run.ray else {}
    return {
        "labelled": recipe(FinetuneRun, ("features",), LABELLED, **labelled),
        "labelled_equal": recipe(FinetuneRun, ("features",), LABELLED_EQUAL, **labelled),
        "checked": Recipe(
            CheckRun, "cirray.pipelines.texts.check:run_check",
            {"triplets": _at(run, "synthetic"), "checkpoint": _at(run, "labelled_equal"),
             "features": [_at(run, "features")], "judge": _at(run, "world")}, ("synthetic", "labelled_equal"),
        ),
        "pretrained": recipe(
            PretrainRun, ("checked",), {**PRETRAIN, "engine": "deepspeed" if run.ray else "torch"},
            triplets=[_at(run, "checked")], **workers,
        ),
        "text_only": recipe(
            PretrainRun, ("checked",), TEXT_ONLY, triplets=[_at(run, "checked")],
            model={**MODEL, "fusion": "text_only"},
        ),
        "oracle_pretrained": recipe(PretrainRun, ("oracle",), PRETRAIN, triplets=[_at(run, "oracle")]),
        "ptha": recipe(
            FinetuneRun, ("pretrained", "reverse"), PTHA, labels=run.labels, reverse_texts=[_at(run, "reverse")],
            **pretrained,
        ),
        "checkpoint": recipe(FinetuneRun, ("pretrained",), FINETUNE, **tuned, **pretrained),
        "oracle_finetuned": recipe(
            FinetuneRun, ("oracle_pretrained",), FINETUNE, **tuned, init=_at(run, "oracle_pretrained")
        ),
    }  # fmt: skip


def _result_recipes(run: StoryRun) -> dict[str, Recipe]:
    data = {"format": "folder", "folder": {"root": _at(run, "world")}}
    rows = {name: row for name, row in ROWS.items() if not run.rows or name in run.rows}
    for name in run.rows:
        if name not in ROWS:
            raise ConfigError(unknown_name("row of the table", name, ROWS))
    compare = {
        "data": data, "features": [_at(run, "features")], "seed": run.seed, "judge": _at(run, "world"),
        "checkpoints": {name: _at(run, row.stage) for name, row in rows.items()},
        "triplets": [_at(run, "checked")], "title": "cirray on the embedded world",
    }  # fmt: skip
    index = {"checkpoint": _at(run, "checkpoint"), "features": [_at(run, "features")], "data": data}
    return {
        "report": Recipe(
            CompareRun, "cirray.pipelines.evaluation.compare:run_compare", compare,
            ("checked", *(row.stage for row in rows.values())),
        ),
        "index": Recipe(IndexRun, "cirray.pipelines.search.index:run_index", index, ("checkpoint",)),
    }  # fmt: skip


MODEL: dict[str, Any] = {"qformer": {"initializer_range": 0.05, "intermediate": 256}}
PRETRAIN: dict[str, Any] = {"objective": "pretrain", "steps": 300, "batch": 128, "optimizer": {"lr": 2e-3}}
FINETUNE: dict[str, Any] = {"objective": "finetune", "steps": 80, "batch": 128, "optimizer": {"lr": 3e-4}}
PTHA: dict[str, Any] = {**FINETUNE, "objective": "ptha", "lambda_m": 0.0, "lambda_p": 0.1}
LABELLED: dict[str, Any] = {"objective": "finetune", "steps": 600, "batch": 128, "optimizer": {"lr": 2e-3}}
LABELLED_EQUAL: dict[str, Any] = {**LABELLED, "steps": 380}
TEXT_ONLY: dict[str, Any] = {"objective": "pretrain", "steps": 150, "batch": 128, "optimizer": {"lr": 2e-3}}
"""Training fields of the story's rows; `jobs/LOG.md` says how they were found."""


def _config(run: StoryRun, name: str, recipe: Recipe) -> Config:
    tree = merged({**recipe.fields, "out": _at(run, name)}, run.stages.get(name, {}))
    if not run.ray and "ray" in recipe.config.model_fields:
        tree = merged(tree, {"ray": {"enabled": False}})
    return load_config(recipe.config, tree)


def _closure(recipes: Mapping[str, Recipe], wanted: Iterable[str]) -> set[str]:
    needed: set[str] = set()
    waiting = list(wanted)
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += recipes[name].after
    return needed


def _generator_stage(name: str) -> str:
    """Stage of a further generator.

    Raises:
        ConfigError: for an unknown one.
    """
    if name not in GENERATORS:
        raise ConfigError(unknown_name("generator of the story", name, GENERATORS))
    return f"generator_{name.lower().replace(' ', '_')}"


def _at(run: StoryRun, stage: str) -> str:
    return storage.join(run.root, stage)


def prepare(stages: Iterable[str], run: StoryRun | None = None) -> None:
    """Make those stages of the story (by default the quickstart's) that are not there yet."""
    run = run or StoryRun()
    missing = [name for name in stages if not is_complete(_at(run, name))]
    if missing:
        get_logger(__name__).info("making what is needed first, below %s: %s", run.root, ", ".join(missing))
        run_stages(run, missing)
