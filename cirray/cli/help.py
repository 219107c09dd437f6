"""`cirray --help` and `cirray VERB --help`."""

from cirray.cli.verb import VERBS, Verb, verb
from cirray.core.config import Config

_RESTART = "throw half-written work of an interrupted or different run away and start anew; finished artifacts stay"


def overview() -> str:
    """The text of `cirray --help`."""
    width = max(len(name) for name in VERBS) + 2
    lines = [f"  {name:<{width}}{verb(name).help}" for name in VERBS]
    return "\n".join(
        [
            "cirray: composed image retrieval at scale, by generating modification text",
            "",
            "usage: cirray VERB [CONFIG.yaml] [path.to.field=value ...] [--root DIR] [--restart] [--print-config]",
            "",
            *lines,
            "",
            "`cirray VERB --help` lists a verb's fields with their defaults. Artifacts lie below ~/cirray/quickstart",
            "unless `--root DIR` moves all of them, or a field names one of them. A killed run goes on when the same",
            "command is given again; `--restart` throws its half-written work away first (finished artifacts stay).",
        ]
    )


def verb_help(chosen: Verb) -> str:
    """The text of `cirray VERB --help`: every field with its default and meaning."""
    lines = [f"cirray {chosen.name}: {chosen.help}", ""]
    if chosen.example:
        lines += [f"example: {chosen.example}", ""]
    if chosen.restarts:
        lines += ["flags:", f"  --restart  {_RESTART}", ""]
    lines += ["fields (path.to.field=value):", *field_lines(chosen.config_class(), "")]
    return "\n".join(lines)


def field_lines(cls: type[Config], prefix: str) -> list[str]:
    """One line a field: its path below `prefix`, default and meaning."""
    lines = []
    for name, field in cls.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Config):
            lines += field_lines(annotation, f"{prefix}{name}.")
            continue
        default = "(required)" if field.is_required() else repr(field.get_default(call_default_factory=True))
        meaning = f"  {field.description.splitlines()[0]}" if field.description else ""
        lines.append(f"  {prefix}{name} = {default}{meaning}")
    return lines
