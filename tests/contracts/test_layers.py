"""The house's floors: imports point down (table in pyproject.toml)."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLE = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cirray"]
FILES = sorted([*(ROOT / "cirray").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")])


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(tree: ast.AST) -> set[str]:
    """Every module an AST imports, at any depth, except under `if TYPE_CHECKING`."""
    found = set()
    for node in ast.walk(tree):
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
