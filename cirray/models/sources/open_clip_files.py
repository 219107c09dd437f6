"""Where the models of open_clip are: a folder, a file, an architecture with a file or a published tag, the hub."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cirray.core.errors import ArtifactError, unknown_name
from cirray.models.sources.clip_files import read_clip, read_named
from cirray.models.sources.files import read_json, read_tensors
from cirray.models.sources.hub import repository_file, repository_folder

CONFIG, PREFIX, HUB = "open_clip_config.json", "open_clip:", "hf-hub:"
WEIGHTS = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors",
    "open_clip_pytorch_model.bin", "pytorch_model.bin",
)  # fmt: skip
_FILES = f"{CONFIG}, {WEIGHTS[0]} and the tokenizer's files"


@dataclass(frozen=True)
class OpenClipFiles:
    """An open_clip model: its `model_cfg`, its `preprocess_cfg`, and its weights."""

    settings: dict[str, Any]
    preprocess: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    folder: Path | None = None
    """Folder of the files, in which a tokenizer's may be."""


def is_open_clip(source: str) -> bool:
    """Whether a source is a folder with open_clip's configuration, a file, or a name of open_clip's."""
    return is_open_clip_name(source) or Path(source).is_file() or (Path(source) / CONFIG).is_file()


def is_open_clip_name(source: str) -> bool:
    """Whether a source is `open_clip:NAME=FILE`, `NAME/TAG` or `hf-hub:OWNER/NAME`; reads no file."""
    return source.startswith((PREFIX, HUB)) or _published(source) is not None


def read_open_clip(source: str) -> OpenClipFiles:
    """Configuration and weights of a source.

    Raises ArtifactError when it cannot be found or read; names the files that are needed.
    """
    if source.startswith(PREFIX):
        return _named(source)
    if Path(source).is_file():
        settings, tensors = read_clip(Path(source))
        return OpenClipFiles(settings, {}, tensors)
    if published := _published(source):
        return _tagged(source, *published)
    if Path(source).is_dir():
        return _folder(source, Path(source))
    return _folder(source, repository_folder(source.removeprefix(HUB), _FILES))


def architecture(source: str) -> dict[str, Any] | None:
    """The `model_cfg` of a source without its weights; None where only the weights tell it."""
    name = source.removeprefix(PREFIX).partition("=")[0] if source.startswith(PREFIX) else source.partition("/")[0]
    if source.startswith(PREFIX) or _published(source):
        from open_clip import get_model_config

        return get_model_config(name)
    path = Path(source) / CONFIG
    return dict(read_json(path)["model_cfg"]) if path.is_file() else None


def _named(source: str) -> OpenClipFiles:
    """`open_clip:NAME=FILE`."""
    import open_clip

    name, mark, file = source.removeprefix(PREFIX).partition("=")
    settings = open_clip.get_model_config(name)
    if settings is None:
        raise ArtifactError(unknown_name("open_clip architecture", name, open_clip.list_models()))
    if not mark or not Path(file).expanduser().is_file():
        raise ArtifactError(
            f"{source!r} names no file of weights. Write open_clip:NAME=FILE with a .safetensors or .bin file that "
            "holds the model's state dict."
        )
    tensors = read_named(source, Path(file).expanduser(), bool(settings.get("quick_gelu")))
    tags = open_clip.list_pretrained_tags_by_model(name)
    return OpenClipFiles(settings, dict(open_clip.get_pretrained_cfg(name, tags[0])) if tags else {}, tensors)


def _published(source: str) -> tuple[str, str] | None:
    """Architecture and tag of `NAME/TAG` (open_clip.list_pretrained), or None."""
    name, mark, tag = source.partition("/")
    if not mark or source.startswith((".", "/")) or Path(source).exists():
        return None
    from open_clip import list_models

    return (name, tag) if name in list_models() else None


def _tagged(source: str, name: str, tag: str) -> OpenClipFiles:
    import open_clip

    found = dict(open_clip.get_pretrained_cfg(name, tag))
    if not found:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise ArtifactError(unknown_name(f"weights of {name}", tag, tags))
    settings = dict(open_clip.get_model_config(name) or {})
    if found.get("quick_gelu", False) != bool(settings.get("quick_gelu", False)):
        right = f"{name}-quickgelu" if found.get("quick_gelu") else name.removesuffix("-quickgelu")
        raise ArtifactError(
            f"The weights {tag!r} are of {right}, with another activation than {name}. Name {right}/{tag}."
        )
    repository, file = _repository(str(found.get("hf_hub", "")))
    advice = f"Fetch {file or WEIGHTS[0]} of {repository} and name it, open_clip:{name}=FILE, or run with network once."
    path = repository_file(repository, (file,) if file else WEIGHTS, advice)
    return OpenClipFiles(settings, found, read_tensors(path))


def _repository(place: str) -> tuple[str, str]:
    """`OWNER/NAME/FILE` as repository and file; open_clip writes `OWNER/NAME/` for the usual file."""
    parts = place.split("/")
    return "/".join(parts[:2]), "/".join(parts[2:])


def _folder(source: str, folder: Path) -> OpenClipFiles:
    tree = read_json(folder / CONFIG)
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None or "model_cfg" not in tree:
        raise ArtifactError(f"{source!r} needs {CONFIG} with a model_cfg, and weights ({', '.join(WEIGHTS)}).")
    return OpenClipFiles(dict(tree["model_cfg"]), dict(tree.get("preprocess_cfg", {})), read_tensors(found), folder)
