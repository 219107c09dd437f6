"""The house's floors: imports point down (table in pyproject.toml)."""

import ast
import tomllib
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLE = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cirray"]
FILES = sorted([*(ROOT / "cirray").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")])


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def running(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node of an AST that runs: not what is under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield node
            yield from running(node)


def imported_modules(tree: ast.AST, nodes: Callable[[ast.AST], Iterator[ast.AST]] = ast.walk) -> set[str]:
    """Every module an AST imports, at any depth."""
    found = set()
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(module: str) -> str | None:
    """The package a module belongs to: `cirray.models.towers.hf` -> `models`; config modules form their own floor."""
    parts = module.split(".")
    if parts[0] == "jobs":
        return "jobs"
    if parts[0] != "cirray" or len(parts) == 1:
        return None
    return parts[1]


def floor(module: str) -> int | None:
    if module.endswith("config") or "config." in module:
        return TABLE["layers"]["config"] if not module.startswith("cirray.core") else TABLE["layers"]["core"]
    name = room(module)
    return TABLE["layers"].get(name) if name else None


def violations(module: str, imports: set[str]) -> list[str]:
    own_floor, found = floor(module), []
    for name in sorted(imports):
        other = floor(name)
        if own_floor is None or other is None or room(name) == room(module):
            continue
        if other > own_floor or (other == own_floor and not module.endswith("config")):
            found.append(f"{module} (floor {own_floor}) imports {name} (floor {other})")
    return found


def banned(module: str, imports: set[str]) -> list[str]:
    found = []
    for library, homes in TABLE["only"].items():
        uses = [name for name in imports if name == library or name.startswith(f"{library}.")]
        at_home = any(
            module == f"cirray.{home}" or module.startswith((f"cirray.{home}.", f"{home}.")) for home in homes
        )
        if uses and not at_home:
            found.append(f"{module} imports {library}, which only {homes} may")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path))
def test_a_module_imports_its_own_package_and_lower_floors_only(path):
    module, imports = module_name(path), imported_modules(ast.parse(path.read_text()))
    assert violations(module, imports) + banned(module, imports) == []


def test_every_package_has_a_floor():
    packages = {path.name for path in (ROOT / "cirray").iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert packages - set(TABLE["layers"]) == set()


def test_the_check_itself_sees_an_upward_import_and_a_banned_library():
    assert violations("cirray.losses.contrastive", {"cirray.training.loop"})
    assert violations("cirray.models.composed", {"cirray.losses.contrastive"})
    assert banned("cirray.training.loop", {"ray.train"})
    assert not violations("cirray.training.loop", {"cirray.losses.contrastive"})


def import_graph(sources: dict[str, str], size: int | None = None) -> dict[str, set[str]]:
    """Module -> modules it imports when it runs, also inside functions; with `size`, names have that many parts."""
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        own = ".".join(module.split(".")[:size])
        for name in imported_modules(ast.parse(source), running):
            parent = name.rpartition(".")[0]
            other = name if name in sources else parent if parent in sources and parent != "cirray" else None
            if other and ".".join(other.split(".")[:size]) != own:
                graph.setdefault(own, set()).add(".".join(other.split(".")[:size]))
    return graph


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one import cycle; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_packages_or_rooms_of_pipelines_import_one_another_in_a_circle_even_inside_functions():
    sources = {module_name(path): path.read_text() for path in (ROOT / "cirray").rglob("*.py")}
    rooms = {name: text for name, text in sources.items() if name.startswith("cirray.pipelines.")}
    found = [cycle(import_graph(sources)), cycle(import_graph(sources, 2)), cycle(import_graph(rooms, 3))]
    assert found == [[], [], []]


def test_the_check_sees_a_circle_through_a_function_and_none_for_type_checking():
    local = {"cirray.a": "import cirray.b", "cirray.b": "def f():\n    from cirray.a import g"}
    typed = {"cirray.a": "import cirray.b", "cirray.b": "if TYPE_CHECKING:\n    from cirray.a import g"}
    assert set(cycle(import_graph(local))) == {"cirray.a", "cirray.b"} and cycle(import_graph(typed)) == []


def test_environment_and_printing_stay_in_core_and_cli():
    offenders = []
    for path in (ROOT / "cirray").rglob("*.py"):
        if room(module_name(path)) in ("core", "cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "putenv"):
                offenders.append(f"{module_name(path)}:{node.lineno} touches {node.attr}")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                offenders.append(f"{module_name(path)}:{node.lineno} prints")
    assert offenders == []
