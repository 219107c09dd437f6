"""The only call of transformers' `from_pretrained`: files are checked, and a source's code never runs.

A source is a folder or a hub id. Faults of its files are found by looking at the files.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import dynamic_module_utils

from cirray.core.errors import ArtifactError
from cirray.models.quiet import quiet
from cirray.models.sources.file_forms import ACCEPTED, foreign_weights, refuse_other_files, refuse_pointers
from cirray.models.sources.files import CONFIG, check_stored_types, read_json, read_pickle
from cirray.models.sources.hub import at_home
from cirray.models.sources.state_dicts import PREFIXES, WRAPPED, check_finite, prefix_of, unwrapped

dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # type: ignore[attr-defined]  # libraries that call it for us do not ask
_OURS = ("*.safetensors", "pytorch_model*.bin")


def pretrained(cls: Any, source: str | Path, **options: Any) -> Any:
    """`cls.from_pretrained(source)`, which runs no code of the source.

    Raises ArtifactError for a file where a folder is needed, pointers and web pages among its files, code of its own,
    and READ_ERRORS as transformers, for anything else that cannot be read.
    """
    place = at_home(source)
    _check_folder(source, Path(place), Path(place) / str(options.get("subfolder", "")))
    try:
        return cls.from_pretrained(place, trust_remote_code=False, **options)
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ArtifactError(
                f"{str(source)!r} has code of its own (auto_map in its JSON files), which is never run here. Give a "
                "model whose classes transformers has, or convert it to one."
            ) from None
        if type(error) in (Exception, TypeError, AttributeError, IndexError, pickle.UnpicklingError):
            raise ValueError(str(error) or type(error).__name__) from None
        raise


def pretrained_model(cls: Any, source: str | Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    """A model and its loading report; wrappers' prefixes (`module.`, Lightning's `model.`) are removed.

    Raises ArtifactError as `pretrained`, or for weights that cannot be read, are packed, NaN or infinite, and
    READ_ERRORS as `pretrained`.
    """
    check_weight_files(source)
    with quiet():
        model, report = pretrained(cls, source, output_loading_info=True, **options)
        mapping = dict(options.pop("key_mapping", {}))
        prefix = _prefix(report, mapping, str(source)) if report["missing_keys"] else ""
        if prefix:
            mapping = {f"^{re.escape(prefix)}": ""}
            model, report = pretrained(cls, source, output_loading_info=True, key_mapping=mapping, **options)
    check_finite(str(source), dict(model.state_dict()))
    return model, report


def check_weight_files(source: str | Path) -> None:
    """Check a local folder's weights before a library reads them.

    Raises ArtifactError naming the first file that holds no weights, is cut off, or holds packed tensors or code.
    """
    folder = Path(at_home(source))
    if not folder.is_dir():
        return
    ours = sorted(path for pattern in _OURS for path in folder.glob(pattern))
    for path in ours:
        refuse_other_files(path)
        if path.suffix == ".bin":
            _check_pickle(path)
    foreign = "" if ours else foreign_weights(path.name for path in folder.iterdir())
    if foreign:
        raise ArtifactError(f"{str(source)!r} holds no weights that can be read here, but {foreign}. {ACCEPTED}.")
    check_stored_types(source)


def _check_pickle(path: Path) -> None:
    tree = read_pickle(path, lazily=True)
    if unwrapped(tree, str(path)).keys() != set(map(str, tree)):
        raise ArtifactError(f"{str(path)!r} holds its tensors under a key. Save the state dict alone.")


def _check_folder(source: str | Path, place: Path, folder: Path) -> None:
    if place.is_file():
        refuse_other_files(place)
        raise ArtifactError(
            f"{str(source)!r} is a file; name the folder that holds it together with {CONFIG} and the other files."
        )
    refuse_pointers(folder)
    if (folder / CONFIG).is_file():
        read_json(folder / CONFIG)


def _prefix(report: Mapping[str, Any], mapping: Mapping[str, str], place: str) -> str:
    """The known wrapper prefix under which the files have a model's missing weights, or nothing."""
    part = [pattern.strip("^").replace("\\", "").rstrip(".") for pattern in mapping]
    found = prefix_of(report["unexpected_keys"], report["missing_keys"], place, (*PREFIXES, *WRAPPED, *part))
    return found
