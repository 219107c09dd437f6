"""One function for all kinds of runs that can be planned."""

from dataclasses import replace
from typing import Any

from cirray.core.config import Config
from cirray.core.errors import ConfigError
from cirray.pipelines.features.config import EmbedRun
from cirray.pipelines.planning.config import PlanConfig
from cirray.pipelines.planning.inference import plan_embed, plan_generate
from cirray.pipelines.planning.inputs import RecipesBeside
from cirray.pipelines.planning.report import PlanReport
from cirray.pipelines.planning.training import plan_generator, plan_retriever
from cirray.pipelines.texts.config import GenerateRun, GeneratorRun
from cirray.pipelines.training.config import TrainRun, TuneRun

PLANNED: tuple[tuple[type[Config], Any], ...] = (
    (TrainRun, plan_retriever), (GeneratorRun, plan_generator), (GenerateRun, plan_generate), (EmbedRun, plan_embed),
)  # fmt: skip


def plan_run(run: Config, plan: PlanConfig | None = None, beside: RecipesBeside | None = None) -> PlanReport:
    """Compute what a run would need, with the recipes beside it that will write missing inputs; nothing is loaded,
    allocated or written.

    Raises ConfigError for a run of another kind, or a source whose sizes cannot be known.
    """
    chosen = run.base if isinstance(run, TuneRun) else run
    for cls, planner in PLANNED:
        if isinstance(chosen, cls):
            report: PlanReport = planner(chosen, plan or PlanConfig(), beside or RecipesBeside())
            return replace(report, title=f"{report.title}, one trial") if isinstance(run, TuneRun) else report
    raise ConfigError(
        f"A {type(run).__name__} needs no plan; give the file of embed, train-generator, generate, pretrain, "
        "finetune or tune."
    )
