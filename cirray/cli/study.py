"""`cirray study`: methods, each a chain of stages in one YAML file, in one table over seeds."""

import shlex
from typing import Any

from cirray.cli.verb import verb
from cirray.core import storage
from cirray.core.artifacts import is_complete
from cirray.core.config import Config
from cirray.core.environ import limit_threads, this_program
from cirray.core.errors import ConfigError
from cirray.core.identity import items
from cirray.core.log import get_logger, linked


def find(name: str) -> tuple[type[Config], str]:
    """Config class and function of a verb. Raises ConfigError: for an unknown verb."""
    found = verb(name)
    return found.config_class(), found.run


def run(config: Any) -> Any:
    """Run a study; its stages are verbs of this command line.

    Raises ConfigError without a table, and as `run_study`.
    """
    if not config.table:
        raise ConfigError(
            "A study is a file with stages and a table: cirray study STUDY.yaml. `cirray quickstart --print-config` "
            "writes one out."
        )
    limit_threads()
    from cirray.pipelines.study.run import run_study

    return run_study(config, find)


def prepare(run: Any) -> None:
    """Make the stages of the quickstart that a run of another verb names and that are missing."""
    from cirray.cli.main import configured
    from cirray.pipelines.study.config import StudyRun
    from cirray.pipelines.study.run import run_stages

    study: StudyRun = configured(verb("quickstart"), [f"root={run.root}"]).config
    named = {storage.join(text) for _, text in items(run.given()) if isinstance(text, str) and text}
    places = {name: storage.join(study.root, name) for name in study.stages}
    missing = [name for name, place in places.items() if place in named and not is_complete(place)]
    if missing and not isinstance(run, StudyRun):
        get_logger(__name__).info("making what is needed first, below %s: %s", study.root, ", ".join(missing))
        limit_threads()
        run_stages(study, find, missing)


def show(manifest: Any) -> str:
    """Table, longest stages, links, and the next commands, which work in any folder and a new shell."""
    told = manifest.extra
    longest = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in told["longest"].items())
    lines = [told["table"], "", f"longest stages: {longest}", ""]
    pages = {"report": told["out"], "pictures": told["scores"]}
    lines += [f"{name:<12}{linked(storage.url(storage.join(at, 'report.html')))}" for name, at in pages.items()]
    if "search" in told:
        lines += _search_lines(**told["search"])
    return "\n".join(lines)


def _search_lines(root: str, index: str, checkpoint: str, query: Any) -> list[str]:
    from cirray.serving.config import ServeRun

    usual = ServeRun()
    place = str(storage.local_path(root).absolute()) if storage.is_local(root) else root
    more = [] if storage.join(usual.index) == storage.join(index) else ["--root", place]
    lines = [
        f"checkpoint  {checkpoint}", f"index       {index}", "", "search it with pictures:",
        f"  {shlex.join([*this_program(), 'serve', *more])}",
        f"then open {linked(f'http://{usual.host}:{usual.port}')}",
    ]  # fmt: skip
    if query:
        asked = [*this_program(), "search", "--id", str(query[0]), "--text", str(query[1]), *more]
        lines += ["or ask it one thing from here:", f"  {shlex.join(asked)}"]
    return lines
