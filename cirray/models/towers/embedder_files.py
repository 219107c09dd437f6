"""Files of a model of sentence-transformers: which modules it has, and which files make it up."""

from pathlib import Path

from cirray.core.errors import ArtifactError
from cirray.core.texts import parse_json

MODULES = "modules.json"
_LIBRARY = "sentence_transformers."
_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".safetensors", ".bin")
_OTHER_RUNTIMES = ("onnx", "openvino")


def module_types(folder: Path) -> list[str]:
    """Classes that a folder's `modules.json` names; empty where there is none.

    Raises ArtifactError when it is damaged.
    """
    path = folder / MODULES
    if not path.is_file():
        return []
    try:
        return [str(module["type"]) for module in parse_json(path.read_bytes())]
    except (ValueError, TypeError, KeyError):
        raise ArtifactError(f"{str(path)!r} is no list of modules. Fetch the model again.") from None


def own_code(module: str) -> bool:
    """Whether a module's class is none of the library's."""
    return not module.startswith(_LIBRARY)


def copied(folder: Path) -> list[tuple[str, Path]]:
    """Name and path of the files that make the model up, ascending; of two forms of weights the safe one."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") or part in _OTHER_RUNTIMES for part in name.parts)
        twice = path.suffix == ".bin" and any(path.parent.glob("*.safetensors"))
        if path.suffix in _SUFFIXES and path.is_file() and not hidden and not twice:
            found.append((name.as_posix(), path))
    return found
