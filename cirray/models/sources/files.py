"""Weights in Hugging Face layout, in a folder or on the hub, checked and read by name.

Nothing here runs code from a file: safetensors holds none, and `.bin` is read with `weights_only`.
"""

import pickle
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open

from cirray.core.contents import file_digest, settings_text
from cirray.core.errors import ArtifactError, reason_of
from cirray.core.places import is_hub_id
from cirray.core.texts import parse_json
from cirray.models.sources.file_forms import foreign_weights, is_safetensors, refuse_answer, refuse_other_files
from cirray.models.sources.hub import at_home
from cirray.models.sources.state_dicts import bare_name, check_floats, prefix_of, unwrapped
from cirray.types import stable_id

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
OLD_SINGLE, OLD_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
READ_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError, StrictDataclassError)
"""What transformers raises for unreadable files and inconsistent configurations."""
_PLAIN = ("F64", "F32", "F16", "BF16", "I64", "I32", "BOOL")
_OTHERS = (
    ("adapter_config.json", "it holds a LoRA adapter, not a whole model; merge it into its base model first"),
    ("model_index.json", "it holds a diffusers pipeline; name the folder of one model inside it"),
)

Find = Callable[[str], Path | None]
"""A file's name -> its path, or None when the source has no such file."""


@dataclass(frozen=True)
class WeightSource:
    """A checkpoint: `config` is its `config.json`, `places` says which file holds a tensor."""

    name: str
    config: dict[str, Any]
    places: dict[str, str]
    find: Find
    stored: Mapping[str, str] = field(default_factory=dict)
    """A tensor's name -> its name in the file, with wrappers' prefixes."""

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self.places)

    def has(self, prefix: str) -> bool:
        """Whether some tensor's name has this prefix."""
        return any(name.startswith(prefix) for name in self.places)

    def file(self, name: str) -> Path:
        """Local path of a weights file, fetched from the hub if need be. Raises ArtifactError: when it is missing."""
        path = self.find(name)
        if path is None:
            raise ArtifactError(
                f"The file {name!r} of {self.name!r} is missing, though its index names it. Fetch the checkpoint again."
            )
        return path

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Tensors by name, in the type they are stored in.

        Raises ArtifactError naming a missing, damaged or non-float tensor.
        """
        wanted = sorted(set(names))
        missing = [name for name in wanted if name not in self.places]
        if missing:
            raise ArtifactError(
                f"{self.name!r} lacks {len(missing)} of the tensors that are needed: {listed(missing)}. "
                "Give a checkpoint of the architecture that its config.json names."
            )
        found: dict[str, torch.Tensor] = {}
        for file in sorted({self.places[name] for name in wanted}):
            names = {self.stored.get(name, name): name for name in wanted if self.places[name] == file}
            found |= {names[name]: value for name, value in read_tensors(self.file(file), names).items()}
        check_floats(self.name, found)
        return found

    def digest(self, names: Iterable[str]) -> str:
        """16 hex digits over the configuration and the files that hold the named tensors."""
        files = sorted({self.places[name] for name in names if name in self.places})
        return stable_id(settings_text(self.config), *(file_digest(str(self.file(name))) for name in files))


def open_weights(source: str | Path, marks: Collection[str] = ()) -> WeightSource:
    """Open a folder or a hub repository; reads `config.json` and the list of tensors, no weights.

    Args:
        source: folder or hub id.
        marks: some tensor names, to find the prefix that wrappers (`module.`, Lightning's `model.`) put before all.

    Raises ArtifactError when it is neither, or has no config or no weights; names the files needed.
    """
    find = _finder(str(source))
    path = find(CONFIG)
    if path is None:
        raise ArtifactError(f"{str(source)!r} holds no {CONFIG}. {_needed(str(source))}")
    config = read_json(path)
    places = _places(str(source), find)
    prefix = prefix_of({bare_name(name) for name in places}, marks, str(source))
    stored = {bare_name(name).removeprefix(prefix): name for name in places}
    return WeightSource(str(source), config, {name: places[given] for name, given in stored.items()}, find, stored)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a file. Raises ArtifactError: when the file holds something else."""
    try:
        tree = parse_json(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        refuse_answer(path)
        raise ArtifactError(f"{str(path)!r} is not readable JSON ({reason_of(error)}). Fetch the file again.") from None
    if not isinstance(tree, dict):
        raise ArtifactError(f"{str(path)!r} holds a {type(tree).__name__}; a JSON object is needed.")
    return tree


def read_tensors(path: Path, names: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
    """Tensors of one `.safetensors` or pickled file, all or the named ones.

    Raises ArtifactError when the file is something else (named), truncated, damaged, or a pickle that holds more than
    tensors and plain values.
    """
    refuse_other_files(path)
    if not is_safetensors(path):
        tree = unwrapped(read_pickle(path), str(path))
        return {name: tree[name] for name in (tree if names is None else names)}
    with _safetensors(path) as file:
        return {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}


def read_pickle(path: Path, lazily: bool = False) -> Any:
    """What `torch.save` wrote, if it is only tensors and plain values; code is refused, never run.

    Args:
        path: the file.
        lazily: memory-map the tensors if the file's format allows it.

    Raises ArtifactError when the file is something else (named), damaged, or would need code of its own to be read.
    """
    refuse_other_files(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch on pickle protocols that other programs write
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=lazily and is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ArtifactError(
            f"{str(path)!r} holds more than weights and was not read: {_refused(error)}. Only tensors, numbers, texts "
            "and containers of them are accepted; save the model's state_dict() alone."
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ArtifactError(
            f"{str(path)!r} is truncated or no torch file ({reason_of(error)}). Fetch it again."
        ) from None


def unreadable(
    what: str, source: str | Path, error: Exception, files: str = f"{CONFIG} and {SINGLE} (or its shards)"
) -> ArtifactError:
    """The error for a folder or hub id that could not be read."""
    name, place = str(source), Path(at_home(source))
    reason = reason_of(error) if place.exists() or _kept(name) else unreachable(name)
    if CONFIG in files and place.is_dir() and not (place / CONFIG).is_file():
        reason = without_config(place)  # a library tells that it knows no such model, or nothing of use
    return ArtifactError(
        f"No {what} could be read from {name!r}: {reason.rstrip('.')}. Put {files} into one folder and name that "
        "folder, or run once with network access so that the hub's cache keeps a hub id's files."
    )


def without_config(place: Path) -> str:
    """What a folder without `config.json` holds, as the second half of a sentence."""
    names = sorted(path.name for path in place.iterdir())
    foreign = foreign_weights(names)
    if foreign:
        return f"it holds {foreign}, which cannot be read here"
    known = next((words for name, words in _OTHERS if name in names), "")
    holds = f"it holds {', '.join(names[:3])}{' ...' if names[3:] else ''}" if names else "it is empty"
    return known or f"the folder has no {CONFIG} ({holds})"


def unreachable(source: str | Path) -> str:
    """Why a source that is no folder or file here cannot be read, as the second half of a sentence."""
    hub = ", and the hub does not answer, has no such model, or gives it to known users alone"
    return "it is no folder here" + (hub if is_hub_id(str(source), bare=True) else "")


def _kept(repository: str) -> bool:
    if not is_hub_id(repository, bare=True):
        return False
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repository, CONFIG), str)


def check_stored_types(source: str | Path) -> None:
    """Refuse a local folder whose safetensors files hold packed weights (8 bits and fewer) of unknown packing.

    transformers would convert them to floats one by one, which gives a model that runs and answers nonsense. A folder
    with a `quantization_config` in `config.json` is left to transformers.

    Raises ArtifactError naming the first such tensor, or a file that is truncated.
    """
    folder = Path(source).expanduser()
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files or ((folder / CONFIG).is_file() and "quantization_config" in read_json(folder / CONFIG)):
        return
    for path in files:
        for name, kind in _stored_types(path).items():
            if kind not in _PLAIN:
                raise ArtifactError(
                    f"The tensor {name!r} of {str(path)!r} is {kind}; float32, float16 and bfloat16 are accepted. "
                    "Give the checkpoint before it was quantised."
                )


def _stored_types(path: Path) -> dict[str, str]:
    with _safetensors(path) as file:
        return {name: str(file.get_slice(name).get_dtype()) for name in file.keys()}


@contextmanager
def _safetensors(path: Path) -> Iterator[Any]:
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(
            f"{str(path)!r} is truncated or no safetensors file ({reason_of(error)}). Fetch or write it again."
        ) from None


def check_fit(
    source: str, wanted: Mapping[str, Any], found: Mapping[str, Any], known: Collection[str] | None = None
) -> None:
    """Refuse weights that do not fill a network exactly; a file may hold further tensors of `known` names.

    Raises ArtifactError naming tensors that are missing, left over, or of another shape.
    """
    missing, left = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted if known is None else known))
    odd = [name for name in wanted if name in found and found[name].shape != wanted[name].shape]
    if missing or left or odd:
        raise ArtifactError(
            f"The weights of {source!r} do not fit its architecture: missing {listed(missing, 3) or 'none'}; left over "
            f"{listed(left, 3) or 'none'}; of another shape {listed(odd, 3) or 'none'}. Give the weights of this model."
        )


def listed(names: Iterable[str], shown: int = 5) -> str:
    """The first names, and the number of the others."""
    every = sorted(names)
    more = f" and {len(every) - shown:,} more" if len(every) > shown else ""
    return ", ".join(every[:shown]) + more


def _finder(source: str) -> Find:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return lambda name: folder / name if (folder / name).is_file() else None
    if folder.is_file():
        refuse_other_files(folder)
        raise ArtifactError(f"{source!r} is a file, not a folder. {_needed(source)} `cirray convert` reads files.")
    if folder.exists() or not is_hub_id(source):
        raise ArtifactError(f"The checkpoint {source!r} is no folder. {_needed(source)}")
    return lambda name: _from_hub(source, name)


def _from_hub(repository: str, name: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, name))
    except LocalEntryNotFoundError:
        pass
    except EntryNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{repository!r} cannot be fetched ({reason_of(error)}). {_needed(repository)}") from None
    raise ArtifactError(f"{repository!r} is no folder here and the hub does not answer. {_needed(repository)}")


def _needed(source: str) -> str:
    return (
        f"Put {CONFIG}, {SINGLE} (or its shards with {INDEX}) and the tokenizer's files into one folder and name that "
        f"folder, or run once with network access so that {source!r} is kept in the hub's cache."
    )


def _places(source: str, find: Find) -> dict[str, str]:
    for index, single in ((INDEX, SINGLE), (OLD_INDEX, OLD_SINGLE)):
        found = find(index)
        if found is not None:
            return {str(name): str(file) for name, file in dict(read_json(found).get("weight_map", {})).items()}
        path = find(single)
        if path is not None:
            return dict.fromkeys(_names(path), single)
    folder = Path(source).expanduser()
    foreign = foreign_weights(path.name for path in folder.iterdir()) if folder.is_dir() else ""
    raise ArtifactError(
        f"{source!r} holds no weights ({SINGLE} or {INDEX}){f', but {foreign}' if foreign else ''}. {_needed(source)}"
    )


def _names(path: Path) -> list[str]:
    refuse_other_files(path)
    if not is_safetensors(path):
        return list(unwrapped(read_pickle(path, lazily=True), str(path)))
    with _safetensors(path) as file:
        return list(file.keys())


def _refused(error: Exception) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f"it wants to import {found.group(1)}" if found else reason_of(error)
