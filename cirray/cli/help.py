"""`cirray --help`, `cirray VERB --help`, and `cirray VERB --help SECTION`."""

import itertools
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from cirray.cli.recipes import files_of
from cirray.cli.tree import Node, Tree, find, roots, shown, walk
from cirray.cli.verb import GROUPS, VERBS, Verb, verb
from cirray.core.errors import ConfigError, unknown_name
from cirray.core.fields import Role

WIDTH = 112
"""Columns of a help text."""
HEIGHT = 60
"""Lines of `cirray VERB --help`."""
_LEFT = 40
"""Columns of a field's name and default."""
_DEFAULT = 32
"""Longest default."""
_KIND = {1: 48, 2: 74}
"""Longest list of choices, by the lines that a field may take."""
_HEADINGS = {
    Role.IDENTITY: "What decides the result:",
    Role.PLACE: "Where things lie:",
    Role.EFFORT: "How the work is done (changes no result):",
}
_FLAGS = {
    "--help SECTION": "open a section or field below; `--help all` shows every field",
    "--print-config": "print the configuration that a run would have, and stop",
}
_RECIPES = {"--help recipes": "list the recipes and overlays that this verb takes by name"}
_RESTART = {"--restart": "throw away half-written work of an interrupted or different run; finished artifacts stay"}
_CLOSING = (
    "`cirray VERB --help` shows the fields of a verb that people change, `cirray VERB --help all` every one, and "
    "`cirray VERB --help recipes` the files that it takes by name, such as shapes/finetune. Of several files the later "
    "wins. `@name` is the artifact of that name below the root: `--root DIR`, else CIRRAY_ROOT, else what a file says, "
    "else ~/cirray/quickstart. A killed run goes on when the same command is given again; `--restart` throws its "
    "half-written work away first (finished artifacts stay). New here? `cirray quickstart` runs the whole story in "
    "minutes."
)


def overview() -> str:
    """The text of `cirray --help`."""
    verbs = [verb(name) for name in VERBS]
    width = max(len(name) for name in VERBS) + 2
    lines: list[str] = []
    for group, heading in GROUPS.items():
        lines += ["", f"{heading}:"]
        lines += [f"  {item.name:<{width}}{item.help}" for item in verbs if item.group == group]
    return "\n".join(
        [
            "cirray: composed image retrieval at scale, by generating modification text",
            "",
            "usage: cirray VERB [RECIPE or FILE.yaml ...] [path.to.field=value ...] [--root DIR] [FLAG ...]",
            *lines,
            "",
            *textwrap.wrap(_CLOSING, WIDTH, break_on_hyphens=False),
        ]
    )


def verb_help(chosen: Verb, path: str = "") -> str:
    """The text of `cirray VERB --help`: the fields people change. With a path: of that section or field; `all`: all.

    Raises ConfigError for a path that is no section and no field, with the near ones.
    """
    if path == "recipes":
        return _recipes_help(chosen)
    tree = chosen.usual()
    if path == "all":
        return "\n".join([f"Every field of cirray {chosen.name}:", *_full(list(walk(roots(tree))))])
    return _section_help(chosen, tree, path.strip(".")) if path else _short_help(chosen, tree)


def common_fields(tree: Tree) -> list[Node]:
    """The fields that the short help shows: a verb's own, and those of its sections that are declared `Common`."""
    return [node for node in walk(roots(tree)) if not node.inside and (node.is_common or "." not in node.path)]


def _short_help(chosen: Verb, tree: Tree) -> str:
    """Each field with the first sentence of its meaning; on one line each where that would not fit a screen."""
    sections = [node for node in roots(tree) if node.inside]
    flags = {**_FLAGS, **(_RECIPES if files_of(chosen) else {}), **(_RESTART if chosen.restarts else {})}
    flags |= {name: f"the same as {assignment}" for name, assignment in chosen.switches.items()}
    for rows in (2, 1):
        lines = [*textwrap.wrap(f"cirray {chosen.name}: {chosen.help}", WIDTH), "", f"  {chosen.example}"]
        for role, heading in _HEADINGS.items():
            nodes = [node for node in common_fields(tree) if node.role is role]
            lines += ["", heading, *_brief(nodes, rows)] if nodes else []
        if sections:
            lines += ["", f"Sections (`cirray {chosen.name} --help {sections[0].path}` opens one):"]
            lines += _sections(sections)
        lines += ["", "Flags (`name=value` may also be typed `--name value`):"]
        lines += [f"  {name:<18}{meaning}" for name, meaning in flags.items()]
        if len(lines) <= HEIGHT:
            break
    return "\n".join(lines)


def _recipes_help(chosen: Verb) -> str:
    """A line for every file that a verb takes by name: the first sentence of its comment."""
    files = files_of(chosen)
    if not files:
        return f"cirray {chosen.name} has no recipes: its fields stand on the command line or in a file of yours."
    width = max(map(len, files)) + 2
    return "\n".join(_fit(f"  {name:<{width}}{_comment(path)}", WIDTH) for name, path in files.items())


def _comment(path: Path) -> str:
    """The first sentence of a file's comment, without what it cites."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    text = " ".join(line.strip("# ") for line in lines)
    return _sentence(re.sub(r"\s*\([^()]*\.md[^()]*\)|:? {3}.*", "", text))


def _section_help(chosen: Verb, tree: Tree, path: str) -> str:
    """A section's fields in full, and the sections inside it; of a set of components all fields; a field alone."""
    node = find(tree, path) or find(tree, path.removesuffix(".settings"))
    if node is None:
        raise ConfigError(unknown_name(f"section or field of cirray {chosen.name}", path, _near(tree, path)))
    if not node.inside:
        return "\n".join(_full([node]))
    children = node.children()
    lines = [*textwrap.wrap(f"cirray {chosen.name}, {node.path}: {node.meaning}", WIDTH), ""]
    if not node.is_section:
        lines += [*textwrap.wrap(f"  {node.path} = {shown(node.default)}  {node.kind}", WIDTH), ""]
    if node.registry is not None:
        for item in children:
            lines += textwrap.wrap(f"  {item.name}: {item.meaning}", WIDTH, subsequent_indent="  ")
            lines += _full(list(walk(item.children())), "    ")
        return "\n".join(lines)
    kinds = [
        kind for item in children if item.is_section for kind in item.children() if kind.registry and not kind.inside
    ]
    lines += _full([*(item for item in children if not item.inside), *kinds])
    sections = [item for item in children if item.inside]
    return "\n".join([*lines, "", "Sections:", *_sections(sections)] if sections else lines)


def _near(tree: Tree, path: str) -> list[str]:
    """What could have been meant: the fields of the deepest section on the way that exists."""
    around = path.rpartition(".")[0]
    while around:
        node = find(tree, around)
        if node and node.inside:
            return [item.path for item in node.children()]
        around = around.rpartition(".")[0]
    return [node.path for node in roots(tree)]


def _sections(nodes: Sequence[Node]) -> list[str]:
    """A line for each section: how many fields it has and the first sentence of its meaning."""
    lines = []
    for node in nodes:
        count = sum(not item.is_section for item in walk(node.children()))
        lines.append(_fit(f"  {node.path:<28}{f'{count} fields':<12}{_sentence(node.meaning)}", WIDTH))
    return lines


def _brief(nodes: Sequence[Node], rows: int) -> list[str]:
    """Fields in columns: name and default, what it holds, the first sentence of its meaning on at most `rows` lines."""
    left = [f"  {node.path} = {_fit(shown(node.default), _DEFAULT)}  " for node in nodes]
    column = min(max(map(len, left)), _LEFT)
    lines: list[str] = []
    for name, node in zip(left, nodes, strict=True):
        kind, most = node.kind, _KIND[rows]
        kind = kind if len(kind) <= most else f"{kind[:most].rpartition(' ')[0]} ...}}"
        start = f"{name:<{column}}{kind:<12}  "
        room = (WIDTH - column - 14) * (rows - 1) + WIDTH - len(start)
        text = start + _fit(_sentence(node.meaning), room)
        lines += textwrap.wrap(text, WIDTH, subsequent_indent=" " * (column + 14), break_on_hyphens=False)
    return lines


def _fit(text: str, width: int) -> str:
    """A text cut to a width: after a part that ends with a semicolon where that fits, else between two words if any."""
    if len(text) <= width:
        return text
    head = text[: width - 4].rpartition("; ")[0]
    if len(head) > width // 3:
        return head
    head = text[: width - 3]
    return (head.rpartition(" ")[0] or head).rstrip(" ,;:") + " ..."


def _sentence(meaning: str) -> str:
    """The first sentence, without its dot."""
    return re.split(r"(?<!e\.g)\. (?=[A-Z`])", meaning)[0].rstrip(".")


def _full(nodes: Sequence[Node], margin: str = "  ") -> list[str]:
    """Fields with all that their docstrings say, one after the other, wrapped; those of one kind under its name."""
    lines, kind = list[str](), ""
    for node in nodes:
        if node.only != kind and node.only:
            lines.append(f"  with kind={node.only}:")
        kind = node.only
        if not node.is_section:
            effort = " (Changes no result.)" if node.role is Role.EFFORT else ""
            text = f"{node.path} = {shown(node.default)}  {node.kind}  {node.meaning}{effort}"
            indent = margin + "  " * bool(kind)
            lines += textwrap.wrap(
                text, WIDTH, initial_indent=indent, subsequent_indent=" " * 8, break_on_hyphens=False
            )
    return lines
