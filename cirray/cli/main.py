"""`cirray VERB [CONFIG.yaml ...] [path.to.field=value ...]`: errors are one sentence and exit status 2."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cirray.cli import completion
from cirray.cli.help import overview, verb_help
from cirray.cli.recipes import recipes
from cirray.cli.verb import VERBS, Verb, split_verb, verb
from cirray.cli.verb import load as imported
from cirray.cli.words import Words, asked, layer_for, read_words
from cirray.core.config import Config, ConfigT, Loaded, from_presets, load, value_at
from cirray.core.environ import artifact_root, limit_threads
from cirray.core.errors import ConfigError, own_error
from cirray.core.interrupts import interruptible
from cirray.core.log import complain, configure, get_logger, printable, say
from cirray.core.places import HOME, ROOT
from cirray.core.reading import typed
from cirray.core.refusals import refusal
from cirray.core.trees import Layer
from cirray.core.unfinished import restarting
from cirray.core.version import __version__

_SHOWN = 3
"""Rejected images that are named with their reasons."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `cirray` command.

    Returns: Exit status: 0 done (or the verb's own status), 2 for a user's error (one sentence on standard error), 3
    done with some images rejected (counted and named), 130 interrupted, 143 terminated.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        say(overview())
        return 0
    if arguments[0] == completion.ASK:
        for answer in completion.answers(arguments[1:]):
            say(answer)
        return 0
    if arguments[0] == "--version":
        say(f"cirray {__version__}")
        return 0
    return guarded(lambda: _run_verb(*split_verb(arguments)))


def job(name: str, argv: Sequence[str] | None = None) -> int:
    """Entry point of `jobs/*.py`: a verb, which without a file takes its recipe of the embedded world (`shapes/NAME`).

    Stages of the quickstart that this recipe names are made first, where they are missing.

    Args:
        name: the verb.
        argv: arguments; the process's own when None.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)

    def work() -> int:
        chosen, recipe = verb(name), recipes().get(f"shapes/{name}")
        if recipe is None or asked(arguments) is not None or (words := read_words(chosen, arguments)).files:
            return _run_verb(name, arguments)
        whole = [str(recipe), *arguments]
        if "--print-config" not in words.flags:
            imported("cirray.cli.study:prepare")(configured(chosen, whole).config)
        return _run_verb(name, whole)

    return guarded(work)


def guarded(work: Any) -> int:
    """Run `work`, turning this package's errors (also those that crossed a Ray worker) into one sentence and exit 2.

    Returns: The status that `work` returns (0 for None), or that of its error; 130 after Ctrl-C, 143 after SIGTERM.
    """
    configure()
    with interruptible() as received:
        try:
            return int(work() or 0)
        except (KeyboardInterrupt, SystemExit, Exception) as error:
            if received.note(error):
                complain(received.sentence)
                return received.status
            if isinstance(error, SystemExit) and not isinstance(error.code, str):
                return int(error.code or 0)
            sentence = user_sentence(error)
            if sentence is None:
                raise
            complain(f"error: {sentence}")
            return 2


def user_sentence(error: BaseException | None) -> str | None:
    """The message of the first error of this package in a chain of causes, or of a disk that refuses; else None."""
    own = own_error(error) or (refusal(error) if error else None)
    return None if own is None else " ".join(str(own).split())


def resolve(cls: type[ConfigT], files: Sequence[Layer], overrides: Sequence[str]) -> Loaded[ConfigT]:
    """The config of a verb. Its root: as the command line says, else `CIRRAY_ROOT`, else the files, else the default.

    Raises ConfigError as `load_config`, and for an empty root.
    """
    root = artifact_root()
    said = [Layer({ROOT: root}, "the variable CIRRAY_ROOT")] if root and ROOT in cls.model_fields else []
    loaded = load(cls, [*files, *said], overrides)
    if getattr(loaded.config, ROOT, HOME) == "":
        raise ConfigError("root is empty; give a folder or URI, or `.` for this folder.")
    return loaded


def _run_verb(name: str, given: list[str]) -> int:
    chosen = verb(name)
    if (section := asked(given)) is not None:
        say(verb_help(chosen, section))
        return 0
    words = read_words(chosen, given)
    loaded, restart = _loaded(chosen, words), "--restart" in words.flags
    config = loaded.config
    if "--print-config" in words.flags:
        say(config.to_yaml().rstrip())
        return 0
    if restart and not chosen.restarts:
        raise ConfigError(f"cirray {name} writes no artifact, so --restart has nothing to throw away.")
    limit_threads()
    _tell_presets(config)
    with restarting(restart), _files_told(loaded):
        result = chosen.function()(config)
    text = chosen.show(result) if chosen.show else describe(result, config)
    if text:
        say(text)
    return chosen.status(result)


@contextmanager
def _files_told(loaded: Loaded[Any]) -> Iterator[None]:
    """Inside, an error about a section of the configuration begins with the files that said it."""
    try:
        yield
    except ConfigError as error:
        origins = loaded.said.origins.items() if error.path else ()
        names = dict.fromkeys(origin.name for place, origin in origins if place[: len(error.path)] == error.path)
        raise ConfigError(f"{', '.join(names)}: {error}" if names else str(error)) from None


def configured(chosen: Verb, given: Sequence[str]) -> Loaded[Any]:
    """The configuration of the words after a verb: its files, the later over the earlier, then the assignments.

    Raises ConfigError as `read_words` and `load_config`.
    """
    return _loaded(chosen, read_words(chosen, given))


def _loaded(chosen: Verb, words: Words) -> Loaded[Any]:
    cls = chosen.config_class()
    files = words.files or tuple(filter(None, [chosen.own_file()]))
    return resolve(cls, [layer_for(file, chosen.name, cls.model_fields, VERBS) for file in files], words.assignments)


def _tell_presets(config: Config) -> None:
    """Report the values that presets set."""
    told: dict[str, list[str]] = {}
    for path, name in from_presets(config).items():
        told.setdefault(name, []).append(f"{'.'.join(path)}={typed(Any, value_at(config, path))}")
    for name, values in told.items():
        get_logger("config").info("preset %s: %s", name, ", ".join(values))


def describe(manifest: Any, config: Any) -> str:
    """One line on a stage's artifact: kind, place, counts and metrics."""
    counts = ", ".join(f"{value:,} {key}" for key, value in manifest.counts.items())
    scalars = {key: value for key, value in manifest.metrics.items() if isinstance(value, int | float)}
    metrics = "".join(f"\n  {key:<28}{value:.4g}" for key, value in scalars.items())
    metrics += "".join(f"\n  {line}" for line in _rejected(manifest, getattr(config, "out", "")))
    return f"{manifest.kind}: {getattr(config, 'out', '')}  ({counts})  digest {manifest.digest[:12]}{metrics}"


def _rejected(manifest: Any, out: str) -> list[str]:
    """Lines on the first rejected images with reasons, the number of the others, and where all are listed."""
    rows = manifest.extra.get("rejected", ())
    rows = [row for row in rows if len(row) > 1][:_SHOWN] if isinstance(rows, list | tuple) else []
    lines = [f"rejected {printable(row[0])}: {printable(row[1])}" for row in rows]
    count, file = manifest.counts.get("rejected", 0), manifest.extra.get("rejected_file")
    where = f"all {count:,} are listed in {out.rstrip('/')}/{file}" if file else "listed in the artifact"
    return [*lines, f"rejected: {count - len(rows):,} more; {where}"] if lines and count > len(rows) else lines


if __name__ == "__main__":
    sys.exit(main())
