"""Repositories of the model hub as local folders: from its cache, or fetched once into it."""

import math
import time
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import get_session

from cirray.core.errors import ArtifactError
from cirray.core.places import is_hub_id

_SETTINGS = ("config.json", "open_clip_config.json", "modules.json")
_SMALL = ("*.json", "*.txt", "*.model", "*.jinja")
_ASKED_S, _TRUSTED_S = 10.0, 60.0
FILES = "config.json, model.safetensors (or its shards), preprocessor_config.json and the tokenizer's files"


def is_repository(source: str) -> bool:
    """Whether a source may be a hub id, `OWNER/NAME`, and no path here."""
    return is_hub_id(source) and not Path(source).exists()


class _Network:
    """Whether the hub answered, when it was asked last; its own library would ask each file again and again."""

    def __init__(self) -> None:
        self._asked_at, self._missed = -math.inf, False

    def look(self) -> None:
        """Ask, unless that was done a moment ago; offline mode of the hub's library until an answer comes."""
        by_others = constants.HF_HUB_OFFLINE and not self._missed
        if by_others or time.monotonic() - self._asked_at < _TRUSTED_S:
            return
        try:
            get_session().head(constants.ENDPOINT, timeout=_ASKED_S)
            self._missed = False
        except Exception:  # noqa: BLE001 - whatever the network's library raises
            self._missed = True
        self._asked_at, constants.HF_HUB_OFFLINE = time.monotonic(), self._missed


_NETWORK = _Network()


def at_home(source: str | Path) -> str:
    """A source for libraries: `~` becomes the home folder, hub ids are kept.

    Without network a hub id is looked for in the cache alone from here on, and so refused at once.
    """
    name = str(source)
    if is_hub_id(name, bare=True) and not Path(name).exists():
        _NETWORK.look()
    return str(Path(name).expanduser()) if name.startswith("~") else name


def at_hub(source: str) -> str:
    """The folder of a hub id's files; any other source as it is.

    Raises ArtifactError when it is not in the cache and cannot be fetched.
    """
    return str(repository_folder(source)) if is_repository(source) else source


def repository_folder(repository: str, files: str = FILES) -> Path:
    """Folder of a repository's files. What the cache has is taken as it is, and the hub is not asked.

    Raises ArtifactError when it is not in the cache and cannot be fetched.
    """
    if any(isinstance(try_to_load_from_cache(repository, name), str) for name in _SETTINGS):
        return Path(snapshot_download(repository, local_files_only=True))
    names = _listed(repository, files)
    weights = [name for name in names if name.endswith(".safetensors")] or [n for n in names if n.endswith(".bin")]
    if "model.safetensors" in weights or "model.safetensors.index.json" in names:
        weights = [name for name in weights if not Path(name).name.startswith("open_clip")]
    return Path(snapshot_download(repository, allow_patterns=[*_SMALL, *weights]))


def repository_file(repository: str, candidates: Sequence[str], advice: str) -> Path:
    """The first of some files that a repository has, from the cache or fetched.

    Raises ArtifactError when there is none; ends with `advice`.
    """
    for name in candidates:
        if isinstance(found := try_to_load_from_cache(repository, name), str):
            return Path(found)
    present = _listed(repository, advice)
    name = next((name for name in candidates if name in present), "")
    if not name:
        raise ArtifactError(f"The hub's {repository!r} has none of the files {', '.join(candidates)}. {advice}")
    return Path(hf_hub_download(repository, name))


def _listed(repository: str, files: str) -> list[str]:
    """Names of a repository's files. One question, so that a machine without network is told at once."""
    try:
        return [item.rfilename for item in HfApi().model_info(repository, timeout=_ASKED_S).siblings or ()]
    except RepositoryNotFoundError:
        reason = "the hub has no such model, or gives it to known users alone"
    except Exception as error:  # noqa: BLE001 - whatever the network's library raises
        reason = f"the hub does not answer ({type(error).__name__})"
    raise ArtifactError(f"{repository!r} is no folder here and not in the hub's cache, and {reason}. {_advice(files)}")


def _advice(files: str) -> str:
    if files.endswith("."):
        return files
    return f"Put {files} into one folder and name that folder, or run once with network access."
