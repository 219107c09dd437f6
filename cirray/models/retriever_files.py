"""A retriever on disk: `config.json`, `model.safetensors` and the tokenizer's files, in one folder."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cirray.core.config import validate
from cirray.core.errors import ArtifactError
from cirray.models.composed import QFormerRetriever
from cirray.models.config import DualEncoderConfig, RetrieverConfig
from cirray.models.dual import DualEncoderRetriever
from cirray.models.sources.files import check_floats
from cirray.models.text import load_tokenizer
from cirray.models.towers.backbones import find_backbone

CONFIG, WEIGHTS, KIND, DUAL_KIND = "config.json", "model.safetensors", "cirray_retriever", "cirray_dual_encoder"
Retriever = QFormerRetriever | DualEncoderRetriever


def save_retriever(retriever: QFormerRetriever, folder: Path) -> None:
    """Write a retriever; the folder is made when absent."""
    folder.mkdir(parents=True, exist_ok=True)
    retriever.tokenizer.save_pretrained(str(folder))
    _write_weights(retriever, folder)
    (folder / CONFIG).write_text(json.dumps(_description(retriever), indent=2, sort_keys=True) + "\n")


def save_dual(retriever: DualEncoderRetriever, folder: Path) -> None:
    """Write a dual encoder; the folder is made when absent."""
    folder.mkdir(parents=True, exist_ok=True)
    retriever.text_encoder.save_words(folder)
    _write_weights(retriever, folder)
    (folder / CONFIG).write_text(json.dumps(_dual_description(retriever), indent=2, sort_keys=True) + "\n")


def load_retriever(folder: str | Path, device: str | torch.device = "cpu") -> Retriever:
    """Read what `save_retriever` or `save_dual` wrote, in evaluation mode.

    Raises:
        ArtifactError: when a file is missing, damaged or of something else.
    """
    path = Path(folder)
    try:
        description = json.loads((path / CONFIG).read_text())
        weights = load_file(str(path / WEIGHTS))
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(
            f"{str(folder)!r} holds no readable retriever ({reason}). Give a checkpoint's model folder."
        ) from None
    with torch.random.fork_rng(devices=[]):
        retriever = build_described(description, path)
    own = retriever.state_dict()
    floats = {name: value for name, value in weights.items() if name in own and own[name].is_floating_point()}
    check_floats(str(folder), floats)
    try:
        retriever.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ArtifactError(f"The weights in {str(folder)!r} do not fit its config: {reason}") from None
    return retriever.to(device).eval()


def build_described(description: Mapping[str, Any], folder: Path) -> Retriever:
    """The retriever that a folder's `config.json` describes, with random weights and the folder's tokenizer.

    Raises:
        ArtifactError: when it describes something else.
    """
    kind = str(description.get("kind"))
    if kind not in _BUILDERS:
        raise ArtifactError(f"{str(folder / CONFIG)!r} describes {kind!r}, not a {KIND} or {DUAL_KIND}.")
    return _BUILDERS[kind](description, folder)


def _build_qformer(description: Mapping[str, Any], path: Path) -> QFormerRetriever:
    config = validate(RetrieverConfig, description["retriever"])
    return QFormerRetriever(config, load_tokenizer(path), int(description["patch_width"]))


def _build_dual(description: Mapping[str, Any], path: Path) -> DualEncoderRetriever:
    backbone = str(description["backbone"])
    text = find_backbone(backbone).build_text(description["text"], path)
    config = validate(DualEncoderConfig, description["retriever"])
    return DualEncoderRetriever(config, text, backbone, int(description["patch_width"]))


_BUILDERS: dict[str, Callable[[Mapping[str, Any], Path], Any]] = {KIND: _build_qformer, DUAL_KIND: _build_dual}


def retriever_digest(retriever: QFormerRetriever) -> str:
    """32 hex digits over configuration, vocabulary and weights; independent of device and file."""
    return _digest(_description(retriever), retriever.tokenizer.get_vocab(), retriever)


def dual_digest(retriever: DualEncoderRetriever) -> str:
    """32 hex digits over configuration, vocabulary and weights; independent of device and file."""
    return _digest(_dual_description(retriever), retriever.text_encoder.vocabulary(), retriever)


def _digest(description: Mapping[str, Any], vocabulary: Mapping[str, int], retriever: torch.nn.Module) -> str:
    total = hashlib.blake2b(json.dumps(description, sort_keys=True).encode(), digest_size=16)
    total.update(json.dumps(sorted(vocabulary.items())).encode())
    for name, tensor in sorted(retriever.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _write_weights(retriever: torch.nn.Module, folder: Path) -> None:
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in retriever.state_dict().items()}
    save_file(weights, str(folder / WEIGHTS), metadata={"format": "pt"})


def _description(retriever: QFormerRetriever) -> dict[str, object]:
    return {"kind": KIND, "patch_width": retriever.patch_width, "retriever": retriever.config.to_dict()}


def _dual_description(retriever: DualEncoderRetriever) -> dict[str, object]:
    config = retriever.config.model_copy(update={"source": ""})
    return {
        "kind": DUAL_KIND, "patch_width": retriever.patch_width, "retriever": config.to_dict(),
        "backbone": retriever.backbone, "text": retriever.text_encoder.description(),
    }  # fmt: skip
