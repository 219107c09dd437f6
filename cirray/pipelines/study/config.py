"""Configuration of a study. A method is a config: stages that name components, and a row that names a stage."""

from typing import Literal

from pydantic import Field, model_validator

from cirray.core.config import Config
from cirray.core.errors import unknown_name
from cirray.core.fields import Effort, Place
from cirray.core.places import Run
from cirray.core.reading import Embedded

_GENERATOR = "train-generator"
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
    fields: dict[str, Embedded] = {}
    """Fields of the verb's config, over those of the template."""
    about: str = ""
    """What it is called where the accuracy of its texts stands; empty: its name."""
    slots: Effort[int] = Field(1, ge=1)
    """Cores it keeps busy."""


class RowSpec(Config):
    """One line of the table."""

    stage: str = ""
    """Stage that makes the checkpoint."""
    features: tuple[str, ...] = ()
    """Features artifacts (`@NAME`) its tower made; empty: the study's."""
    rewrites: str = ""
    """Rewrites artifact (`@NAME`) whose texts are asked instead of the queries' own; it is one stage more."""
    rerank: dict[str, Embedded] | None = None
    """What scores the first answers of its queries again, `{kind, top, settings}`."""
    labelled: bool = True
    """Whether labelled triplets were used anywhere on the way; the column `labels` says `$labels` or 0."""
    texts: str = ""
    """Triplets stage whose share of exact texts stands beside the row."""
    index: str = ""
    """Stage that indexes its checkpoint: run with the row, and the closing lines say how to search it."""
    shapes: int = Field(0, ge=0)
    """Measure by that index, and the scenes of `judge`, what each shape of query does (a text alone, a box, ...), by so
    many queries of each; 0: not."""
    source: str = ""
    """Which paper or idea; shown beside the name."""
    encoder: dict[str, Embedded] | None = None
    """Instead of `stage`: an encoder that is not trained, `{kind, settings}`."""

    @model_validator(mode="after")
    def _one(self) -> "RowSpec":
        if bool(self.stage) == (self.encoder is not None):
            raise ValueError("a row needs a stage, or an untrained encoder; give one of the two")
        return self

    def stages(self) -> tuple[str, ...]:
        """Every stage that it names."""
        return tuple(name for name in (self.stage, self.texts, self.index) if name)


class ClaimSpec(Config):
    """What is expected, tested seed by seed: a row above others, or a figure of a row or stage above a number."""

    text: str
    """The claim in words."""
    row: str
    """Row that should be better; with `least` also a stage, whose figure is meant."""
    over: tuple[str, ...] = ()
    """Than the best of these."""
    least: float | None = None
    """Instead of `over`: than this number."""
    metric: str = "R@1"
    """Figure of the rows; of a stage, a dotted path into its manifest's metrics (`trained.forward.exact`)."""
    points: float = 0.0
    """By more than this many points."""
    relative: float = 0.0
    """And by more than this share of the other's."""
    share: float = 0.0
    """And by more than this share of what the row `of` is better."""
    of: str = ""
    """Upper bound that `share` counts from."""

    @model_validator(mode="after")
    def _one(self) -> "ClaimSpec":
        if bool(self.over) == (self.least is not None):
            raise ValueError("a claim needs `over` (other rows) or `least` (a number); give one of the two")
        if bool(self.share) != bool(self.of):
            raise ValueError("`share` is a share of the gain of the row `of`; give both or none")
        return self

    def rows(self) -> tuple[str, ...]:
        """Every row that it needs."""
        return (self.row, *self.over, *((self.of,) if self.of else ()))


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
    """By more than this many points."""

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


class StudyRun(Run):
    """Run the methods of a study over seeds and write one report: table, claims, curves."""

    title: str = "Methods compared"
    """Heading of the report."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; each has its own world, models and order of rows."""
    per_seed: bool = True
    """A folder for each seed, `seed-N`; false: the artifacts of the one seed lie directly below root."""
    scores: str = ""
    """Name of a seed's scores (a report with pictures); empty: `score-` and a mark of its rows."""
    data: dict[str, Embedded] = {}
    """Data set whose queries are scored (fields of a `DataConfig`)."""
    features: tuple[str, ...] = ("@features",)
    """Features artifacts of its images."""
    samples: tuple[str, ...] = ()
    """Triplets artifacts (`@NAME`) of which some texts stand in a seed's report."""
    judge: str = ""
    """Root of a shapes world (`@world`) that judges these texts."""
    variables: dict[str, Value] = {}
    """Variables and their defaults; `labels` is the number of labelled triplets."""
    templates: dict[str, dict[str, Embedded]] = {}
    """Named sets of fields for stages."""
    stages: dict[str, StageSpec] = {}
    """Every stage by name."""
    table: dict[str, RowSpec] = {}
    """Rows by name, in the table's order; the last one is shown with pictures."""
    rows: tuple[str, ...] = ()
    """Only these rows; empty: all."""
    generators: tuple[str, ...] = ()
    """Further stages that train a generator, for the accuracy of its texts; those that rows need are run anyway."""
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
    """Report artifact (path or URI); empty: `study-` and a mark of its settings, below root."""

    @model_validator(mode="after")
    def _known(self) -> "StudyRun":
        if not self.seeds:
            raise ValueError("seeds is empty; give at least one")
        if len(self.seeds) > 1 and not self.per_seed:
            raise ValueError("several seeds need a folder each; set per_seed=true (and a root of their own)")
        rows, curves = self.table, self.curves.values()
        if self.scores in self.stages:
            raise ValueError(f"scores {self.scores!r} is the name of a stage; give the scores another name")
        for kind, names, known in (
            ("rows", self.rows, rows),
            ("generators", self.generators, [name for name, item in self.stages.items() if item.verb == _GENERATOR]),
            ("curve", self.curve, self.curves),
            ("curves", [row for item in curves for row in item.rows], rows),
            ("curves", [name for item in curves for name in item.names()], self.variables),
            ("where", [at for item in curves for at in item.where], [str(at) for item in curves for at in item.values]),
            ("table", [name for row in rows.values() for name in row.stages()], self.stages),
            ("stages", [item.like for item in self.stages.values() if item.like], self.templates),
            ("claims", [item.row for item in self.claims if item.least is not None], {**rows, **self.stages}),
            ("claims", [name for item in self.claims if item.least is None for name in item.rows()], rows),
        ):
            for name in names:
                if name not in known:
                    raise ValueError(f"{kind}: {unknown_name('name', name, known).rstrip('.')}")
        for name, row in rows.items():
            if row.index and self.stages[row.index].verb != "index":
                raise ValueError(f"table: row {name!r} has the index {row.index!r}, which is no stage of verb index")
            if row.shapes and not (row.index and self.judge):
                raise ValueError(
                    f"table: row {name!r} has shapes, for which it needs an `index`, and the study a `judge`"
                )
        return self
