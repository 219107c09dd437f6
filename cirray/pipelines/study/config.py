"""Configuration of a study. A method is a config: stages that name components, and a row that names a stage."""

from typing import Any, Literal

from pydantic import Field, model_validator

from cirray.core.config import Config
from cirray.core.fields import Effort, Place

Value = str | int | float | bool | None


class StageSpec(Config):
    """One stage: a verb of the command line and the fields that differ from its defaults.

    In `fields`, the text `@NAME` stands for the artifact of stage NAME (`@NAME/part` for a place in it), and `$NAME`
    for a variable of the study; `$seed` is the seed.
    """

    verb: str
    """Verb that runs it: mine, generate, pretrain, finetune, ..."""
    like: str = ""
    """A template whose fields are taken first."""
    fields: dict[str, Any] = {}
    """Fields of the verb's config, over those of the template."""
    slots: Effort[int] = Field(1, ge=1)
    """Cores it keeps busy."""


class RowSpec(Config):
    """One line of the table."""

    stage: str = ""
    """Stage that makes the checkpoint."""
    features: tuple[Place, ...] = ()
    """Features artifacts (`@NAME`) its tower made; empty: the study's."""
    rewrites: Place = ""
    """Rewrites artifact (`@NAME`) whose texts are asked instead of the queries' own; it is one stage more."""
    labelled: bool = True
    """Whether labelled triplets were used anywhere on the way; the column `labels` says `$labels` or 0."""
    texts: str = ""
    """Triplets stage whose share of exact texts stands beside the row."""
    source: str = ""
    """Which paper or idea; shown beside the name."""
    dual: dict[str, Any] | None = None
    """Instead of `stage`: a dual encoder that is not trained (fields of a `DualEncoderConfig`)."""

    @model_validator(mode="after")
    def _one(self) -> "RowSpec":
        if bool(self.stage) == (self.dual is not None):
            raise ValueError("a row needs a stage, or (untrained) a dual encoder; give one of the two")
        return self


class ClaimSpec(Config):
    """What a paper leads one to expect: one row above another, tested over the seeds, pair by pair."""

    text: str
    """The claim in words."""
    row: str
    """Row that should be better."""
    over: tuple[str, ...]
    """Than the best of these."""
    metric: str = "R@1"
    points: float = 0.0
    """By more than so many points."""
    relative: float = 0.0
    """And by more than this share of the other's."""


class CurveClaimSpec(Config):
    """What is expected along a curve: a row above another one at the same value, or best at one value of its own."""

    text: str
    """The claim in words."""
    row: str
    """Row of the curve."""
    over: str = ""
    """Row that it should beat at every value; empty: itself at the other values."""
    best: Value = None
    """Without `over`: the value at which it should be best."""
    points: float = 0.0
    """By more than so many points."""

    @model_validator(mode="after")
    def _one(self) -> "CurveClaimSpec":
        if bool(self.over) == (self.best is not None):
            raise ValueError("a claim of a curve needs `over` (another row) or `best` (a value); give one of the two")
        return self


class CurveSpec(Config):
    """Rows over the values of one variable, the other variables at their defaults or at fixed values."""

    variable: str
    values: tuple[Value, ...]
    rows: tuple[str, ...]
    """Rows drawn."""
    at: dict[str, Value] = {}
    """Values of other variables on this curve."""
    where: dict[str, dict[str, Value]] = {}
    """And at single values of it: `{8000: {families: 2000}}`; the value is written as text."""
    x_label: str = ""
    """What the axis says; empty: the variable."""
    metric: str = "R@1"
    scale: Literal["log", "linear"] = "log"
    claims: tuple[CurveClaimSpec, ...] = ()
    """What is expected of it."""

    @model_validator(mode="after")
    def _fits(self) -> "CurveSpec":
        for claim in self.claims:
            for row in filter(None, (claim.row, claim.over)):
                if row not in self.rows:
                    raise ValueError(f"claims name row {row!r}; rows of the curve: {', '.join(self.rows)}")
            if claim.best is not None and claim.best not in self.values:
                known = ", ".join(map(str, self.values))
                raise ValueError(f"claims say best at {claim.best!r}; values of the curve: {known}")
        return self

    def names(self) -> tuple[str, ...]:
        """Every variable that it sets."""
        return (self.variable, *self.at, *(name for more in self.where.values() for name in more))

    def assignment(self, value: Value) -> dict[str, Value]:
        """All variables that differ at one value."""
        return {**self.at, **self.where.get(str(value), {}), self.variable: value}


class StudyRun(Config):
    """Run the methods of a study over seeds and write one report: table, claims, curves."""

    title: str = "Methods compared"
    """Heading of the report."""
    root: Place = "~/cirray/compare"
    """Folder of all artifacts: `seed-N/STAGE`, and the report."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; each has its own world, models and order of rows."""
    data: dict[str, Any] = {}
    """Data set whose queries are scored (fields of a `DataConfig`)."""
    features: tuple[Place, ...] = ("@features",)
    """Features artifacts of its images."""
    judge: Place = ""
    """Root of a shapes world that judges generated texts (`@world`)."""
    variables: dict[str, Value] = {}
    """Variables and their defaults; `labels` is the number of labelled triplets."""
    templates: dict[str, dict[str, Any]] = {}
    """Named sets of fields for stages."""
    stages: dict[str, StageSpec] = {}
    """Every stage by name."""
    table: dict[str, RowSpec] = {}
    """Rows by name, in the table's order; the last one is shown with pictures."""
    rows: tuple[str, ...] = ()
    """Only these rows; empty: all."""
    claims: tuple[ClaimSpec, ...] = ()
    """Expectations that are confirmed or refuted; those whose rows are not run are left out."""
    curves: dict[str, CurveSpec] = {}
    """Curves by name."""
    curve: tuple[str, ...] = ()
    """Curves that are run, beside the table; empty: none."""
    slots: Effort[int] = Field(2, ge=1)
    """Cores; stages that do not build on each other run side by side."""
    ray: Effort[bool] = True
    """Run stages as Ray tasks; false: one after another in this process."""
    out: Place = ""
    """Report artifact (path or URI); empty: `report` below root, with the seeds' names."""

    @model_validator(mode="after")
    def _known(self) -> "StudyRun":
        if not self.seeds:
            raise ValueError("seeds is empty; give at least one")
        for kind, names, known in (
            ("rows", self.rows, self.table),
            ("curve", self.curve, self.curves),
            ("curves", [row for item in self.curves.values() for row in item.rows], self.table),
            ("curves", [name for item in self.curves.values() for name in item.names()], self.variables),
            (
                "where",
                [name for item in self.curves.values() for name in item.where],
                [str(value) for item in self.curves.values() for value in item.values],
            ),
            ("table", [row.stage for row in self.table.values() if row.stage], self.stages),
            ("stages", [item.like for item in self.stages.values() if item.like], self.templates),
        ):
            for name in names:
                if name not in known:
                    raise ValueError(f"{kind} name {name!r}, which is unknown; known: {', '.join(known) or '(none)'}")
        return self


class StoryRun(Config):
    """The whole story on the embedded world: every stage below one root, every row of the results table."""

    root: Place = "~/cirray/quickstart"
    """Folder of all artifacts; run again with the same root to go on where a killed run stopped."""
    seed: int = Field(0, ge=0)
    """Everything drawn, trained or shown follows from it: world, start weights, order of the rows."""
    labels: int | None = Field(None, ge=1)
    """Use only the first so many labelled triplets (whole families); null: all."""
    stages: dict[str, Any] = {}
    """Fields of single stages over the story's own, by stage name: `stages.pretrain.training.steps=200`."""
    rows: tuple[str, ...] = (
        "text only", "labelled only (equal compute)", "MTST only", "oracle texts + fine-tuning", "MTST + PTHA",
        "MTST + fine-tuning",
    )  # fmt: skip
    """Rows of the table to make, by name, and what they build on; empty: all (the saturated baseline too)."""
    generators: tuple[str, ...] = ()
    """Further generators to train for the accuracy lines: LoRA, tuned, three passes, three passes tuned."""
    slots: Effort[int] = Field(2, ge=1)
    """Cores to keep busy."""
    ray: Effort[bool] = True
    """Run the stages as Ray tasks side by side; false: one after another in this process, without Ray anywhere."""
