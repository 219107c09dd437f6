"""`cirray completion bash|zsh`: the shell's script; it asks `cirray __complete WORD...` how the last word may go on."""

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from cirray.cli.recipes import files_of, recipes
from cirray.cli.tree import Node, find, roots
from cirray.cli.verb import FLAGS, VERBS, Verb, split_verb, verb
from cirray.core.config import Config
from cirray.core.environ import artifact_root

ASK = "__complete"
"""The word with which a shell's script asks."""
_FILES = (".yaml", ".yml")
_SCRIPTS = {
    "bash": """\
# Completion of cirray for bash: source <(cirray completion bash)
_cirray() {
    local line=${COMP_LINE:0:COMP_POINT} breaks=${COMP_WORDBREAKS//@} words word kept
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    word=${words[${#words[@]}-1]}
    kept=${word%"${word##*[$breaks]}"}  # readline replaces what follows the last break, or what an @ begins
    word=${word#"$kept"}
    [[ $word == *@* ]] && kept+=${word%@*}
    COMPREPLY=()
    while IFS= read -r word; do
        word=${word#"$kept"}
        [[ $word == *" "* ]] && printf -v word %q "$word"
        [[ $word == *[=./] ]] || word+=" "
        COMPREPLY+=("$word")
    done < <("${words[0]/#\\~/$HOME}" __complete "${words[@]:1}" 2>/dev/null)
}
complete -o nospace -F _cirray cirray
""",
    "zsh": """\
#compdef cirray
# Completion of cirray for zsh: source <(cirray completion zsh), or a file _cirray in a folder of $fpath
_cirray() {
    local -a found
    found=("${(@f)$("${(Q)words[1]/#\\~/$HOME}" __complete "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)}")
    compadd -S '' -- ${(M)found:#*[=./]}
    compadd -- ${found:#*[=./]}
}
if [[ $funcstack[1] == _cirray ]]; then
    _cirray "$@"
else
    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
    compdef _cirray cirray
fi
""",
}


class CompletionRun(Config):
    """Print the completion script of a shell."""

    shell: Literal["bash", "zsh"]
    """Which shell."""


def script(run: CompletionRun) -> str:
    """The script of a shell."""
    return _SCRIPTS[run.shell].rstrip()


def answers(words: Sequence[str]) -> list[str]:
    """What the last of the words after `cirray` may become. What is not finished ends with `=`, `.` or `/`."""
    *before, word = words or [""]
    if not before:
        found: Iterable[str] = [*(name for name in VERBS if " " not in name), "--help", "--version"]
    elif before[0] in VERBS:
        name, rest = split_verb(before)
        found = [*_of_verb(verb(name), rest, word), *_second_words(before)]
    else:
        found = []
    return sorted({item for item in found if item.startswith(word)})


def _second_words(before: Sequence[str]) -> list[str]:
    """What makes a verb of two words of a single first word."""
    return [name.partition(" ")[2] for name in VERBS if len(before) == 1 and name.startswith(f"{before[0]} ")]


def _of_verb(chosen: Verb, before: Sequence[str], word: str) -> list[str]:
    """What a verb takes; one that gathers the files of another verb (`cirray plan`) takes what that verb takes too."""
    before = [str(recipes().get(item, item)) for item in before]
    other = _gathered(before) if chosen.gathers[0] else ""
    return [*_own(chosen, before, word), *(_own(verb(other), before, word) if other else [])]


def _gathered(before: Sequence[str]) -> str:
    """The verb that words say, or with which a file's name begins."""
    said = [item.removeprefix("verb=") for item in before]
    stems = [f"{Path(item).stem}-" for item in before if item.endswith(_FILES)]
    begun = [name for name in VERBS for stem in stems if stem.startswith(f"{name}-")]
    return next((name for name in [*said, *sorted(begun, key=len, reverse=True)] if name in VERBS), "")


def _own(chosen: Verb, before: Sequence[str], word: str) -> list[str]:
    last = before[-1] if before else ""
    if last == "--help" or word.startswith("--help="):
        head, mark, path = word.rpartition("=")
        return [head + mark + item for item in ["all", "recipes", *_steps(chosen, path, before, helps=True)]]
    if last.startswith("--") and "=" not in last and last not in (*FLAGS, *chosen.switches):
        return _values(chosen, last[2:].replace("-", "_"), word, before)
    name, mark, value = word.removeprefix("--").partition("=")
    dashes = word[: len(word) - len(word.removeprefix("--"))]
    if mark:
        return [f"{dashes}{name}={item}" for item in _values(chosen, name.replace("-", "_"), value, before)]
    if dashes:
        flags = [flag for flag in FLAGS if chosen.restarts or flag != "--restart"]
        own = [f"--{node.path.replace('_', '-')}" for node in roots(chosen.usual()) if not _opens(node)]
        return [*flags, "--root", *chosen.switches, *own]
    bare = _values(chosen, chosen.positional, word, before) if chosen.positional else []
    return [*_steps(chosen, word, before), *_paths(word, _FILES), *files_of(chosen), *bare]


def _opens(node: Node) -> bool:
    """Whether the fields below a field are set by dotted paths."""
    return bool(node.inside) and (node.is_section or node.registry is not None or node.kind.startswith("section"))


def _steps(chosen: Verb, word: str, before: Sequence[str], helps: bool = False) -> list[str]:
    """The next part of a dotted path: fields with `=`, sections with a dot (in `--help SECTION` as they are)."""
    tree, around = chosen.usual(), word.rpartition(".")[0]
    parent = find(tree, around) or find(tree, around.removesuffix(".settings")) if around else None
    if around and parent is None:
        return []
    found = []
    for node in parent.children() if parent else roots(tree):
        rest = node.path.removeprefix(f"{around}." if around else "")
        if rest == node.path and around or (node.only and node.only not in _kinds(chosen, parent, before)):
            continue
        if "." in rest:
            found.append(node.path[: -len(rest)] + rest.partition(".")[0] + ".")
        elif helps:
            found.append(node.path)
        else:
            found.append(node.path + ("." if _opens(node) else "="))
    return found


def _kinds(chosen: Verb, component: Node | None, before: Sequence[str]) -> list[str]:
    """The kind of a component that the words before say, else its default."""
    if component is None:
        return []
    starts = (f"{component.path}=", f"{component.path}.kind=")
    said = [item.partition("=")[2] for item in before if item.startswith(starts)]
    return said[-1:] or [getattr(component.default, "kind", "")]


def _values(chosen: Verb, name: str, value: str, before: Sequence[str]) -> list[str]:
    """What a field may be set to: its choices (in a list, the next one), or files and artifacts."""
    if name == "root":
        return _paths(value, ())
    node = find(chosen.usual(), name)
    if node is None:
        return []
    node = next((item for item in node.children() if item.is_kind), node)  # a component's kind alone is short for it
    head = value[: max(value.rfind("["), value.rfind(",")) + 1] if node.kind.startswith("list") else ""
    typed = value.removeprefix(head)
    choices = [choice for choice in node.choices if choice]
    if "path" in node.kind:
        choices += _artifacts(chosen, typed, before) if typed.startswith("@") else _paths(typed)
    return [head + choice for choice in choices]


def _artifacts(chosen: Verb, typed: str, before: Sequence[str]) -> list[str]:
    """Artifacts and folders below the root, as `@name`."""
    root = os.path.expanduser(_root(chosen, before))
    found = []
    for path in _paths(os.path.join(root, typed[1:]), ()):
        name = "@" + os.path.relpath(path, root)
        found.append(name if Path(path, "manifest.json").exists() else f"{name}/")
    return found


def _root(chosen: Verb, before: Sequence[str]) -> str:
    """The root that a run would have: of the words before, the environment, the files named, the verb's default."""
    said = [item.partition("=")[2] for item in before if item.startswith(("root=", "--root="))]
    said += [item for at, item in enumerate(before) if at and before[at - 1] == "--root"]
    said = said[-1:] or [artifact_root()]
    for file in reversed([item for item in before if item.endswith(_FILES)]):
        with suppress(OSError, UnicodeDecodeError):
            said += re.findall(r"(?m)^root:\s*(\S+)", Path(file).expanduser().read_text())
    field = chosen.config_class().model_fields.get("root")
    return next((item for item in said if item), str(field.default) if field else ".")


def _paths(typed: str, suffixes: Sequence[str] | None = None) -> list[str]:
    """Folders, and files with one of the suffixes (None: all), whose names begin as typed."""
    folder, name = os.path.split(typed)
    found = []
    try:
        entries = list(os.scandir(os.path.expanduser(folder) or "."))
    except OSError:
        return []
    for entry in entries:
        if entry.name.startswith(name) and not (entry.name.startswith(".") and not name):
            path = os.path.join(folder, entry.name)
            if entry.is_dir():
                found.append(f"{path}/")
            elif suffixes is None or entry.name.endswith(tuple(suffixes)):
                found.append(path)
    return found
