"""Files that hold a CLIP: CLIP4Cir's, OpenAI's state dicts, open_clip's own."""

from pathlib import Path
from typing import Any

import torch

from cirray.core.errors import ArtifactError
from cirray.models.conversion_clip import CLIP, clip_settings, find_parts
from cirray.models.sources.file_forms import is_safetensors, refuse_other_files
from cirray.models.sources.files import read_pickle, read_tensors
from cirray.models.sources.state_dicts import unwrapped


def read_tree(path: Path) -> Any:
    """Content of a `.safetensors` or pickled file; code in a pickle is refused.

    Raises ArtifactError when it cannot be read, or is a TorchScript archive, as OpenAI's own downloads are.
    """
    refuse_other_files(path)
    return read_tensors(path) if is_safetensors(path) else read_pickle(path)


def read_clip(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """open_clip's configuration and the weights of a file that shows that its CLIP is OpenAI's.

    Raises ArtifactError when it holds no such CLIP.
    """
    parts = find_parts(read_tree(path))
    if CLIP not in parts.states:
        found = ", ".join(sorted(parts.states)) or "none of the tensors that tell one"
        raise ArtifactError(
            f"{str(path)!r} holds no CLIP in OpenAI's layout (found: {found}). Give CLIP4Cir's tuned CLIP, a folder, "
            "or open_clip:NAME=FILE; `cirray convert` reads files of other kinds."
        )
    if not parts.openai:
        raise ArtifactError(
            f"{str(path)!r} is a bare state dict, which does not tell its activation. Name the architecture, "
            "open_clip:NAME=FILE (OpenAI's weights: a NAME that ends in -quickgelu), or, if it is OpenAI's, run "
            "`cirray convert format=clip4cir` once and name the folder."
        )
    return clip_settings(parts.states[CLIP]), parts.states[CLIP]


def read_named(source: str, path: Path, quick: bool) -> dict[str, torch.Tensor]:
    """Weights of a file for a named architecture: bare, as CLIP4Cir wraps them, or as open_clip's training does.

    Raises ArtifactError when it holds no state dict, or one of another activation.
    """
    tree = read_tree(path)
    parts = find_parts(tree)
    if parts.openai and not quick:
        raise ArtifactError(
            f"{source!r} names an architecture without QuickGELU, but the file's CLIP is of OpenAI's make, which has "
            f"it. Give the file alone, {str(path)!r}, or a NAME that ends in -quickgelu."
        )
    if CLIP in parts.states:
        return parts.states[CLIP]
    return unwrapped(tree, source)
