"""Models of sentence-transformers that take pictures and texts: the library encodes, by its own conventions.

One network gives both sides: as tower a picture's one vector (`encode_document`), as text encoder that of a text
(`encode_query`), and, where it reads them together, that of picture and text (`{"image": ..., "text": ...}`). The files
are kept as they were published, and weights in their stored type; a checkpoint holds them once, beside its tower.
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

import torch
from PIL import Image
from torch import nn

from cirray.core.contents import canonical, content_digest
from cirray.core.errors import ArtifactError, ConfigError, DataError, reason_of
from cirray.core.extras import require
from cirray.core.texts import parse_json
from cirray.data.config import OwnShapeConfig, TransformConfig
from cirray.models.batch import TextBatch
from cirray.models.quiet import quiet
from cirray.models.sources.file_forms import refuse_pointers
from cirray.models.sources.files import READ_ERRORS, at_home
from cirray.models.sources.pretrained import check_weight_files
from cirray.models.towers.backbones import BACKBONES, Backbone
from cirray.models.towers.hf_blip2 import VisionTower
from cirray.transforms import unpacked

NAME = "sentence_transformers"
_MEGAPIXEL = OwnShapeConfig(size=1024, mode="whole")
_VISION = "vision"
_OPEN: WeakValueDictionary[tuple[Any, ...], "Network"] = WeakValueDictionary()
"""Networks in use, so that tower and text encoder share one."""


class Network:
    """A model of sentence-transformers and the folder of its files."""

    def __init__(self, folder: Path, model: Any) -> None:
        """Keep both."""
        self.folder, self.model, self._one = folder, model, Lock()

    @property
    def reads_both(self) -> bool:
        """Whether it reads a picture and a text together."""
        return bool(self.model.supports(("image", "text")))

    @cached_property
    def digest(self) -> str:
        """32 hex digits over weights and settings as published; a library's version number is none of them."""
        total = hashlib.blake2b(digest_size=16)
        for name, path in copied(self.folder):
            total.update(f"{name}\x1f".encode())
            if path.suffix in (".safetensors", ".bin"):
                with path.open("rb") as stream:
                    total.update(hashlib.file_digest(stream, "blake2b").digest())
            else:
                total.update(content_digest(str(path)).encode())
        return total.hexdigest()

    def encode(self, inputs: Sequence[Mapping[str, Any]], query: bool) -> torch.Tensor:
        """Vectors `[B, D]`, float32, not normalised by us, of inputs with the keys `image`, `text` or both.

        A text is never given bare: the library would open one that is a path, and fetch one that is an address.
        """
        call = self.model.encode_query if query else self.model.encode_document
        with self._one:  # tokenizers refuse two threads at once
            found = call(list(inputs), batch_size=len(inputs), show_progress_bar=False, convert_to_tensor=True)
        return found.float().clone()  # the library's own are of inference mode, which a trained head cannot use


class EmbedderTower(VisionTower):
    """A picture's vector, as a gallery has it."""

    def __init__(self, network: Network, transform: TransformConfig) -> None:
        """Freeze a network's model, which stays that of the text encoder too."""
        self.network = network
        super().__init__(network.model, transform)

    def forward(self, packed_BL: torch.Tensor) -> torch.Tensor:
        """Vectors `[B, 1, D]` of packed pictures."""
        return self.network.encode([{"image": picture} for picture in _pictures(packed_BL)], query=False)[:, None]

    def with_transform(self, transform: TransformConfig) -> "EmbedderTower":
        """The same tower with another transform."""
        return EmbedderTower(self.network, transform)

    @cached_property
    def digest(self) -> str:
        """Digest of the published files and of the transform."""
        text = canonical([self.network.digest, self.transform.identity()])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Copy the published files."""
        for name, path in copied(self.network.folder):
            target = Path(folder) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)

    def _sizes(self) -> tuple[int, int, int]:
        return int(self.network.model.get_embedding_dimension()), 1, self.transform.size


class EmbedderText(nn.Module):
    """Texts, alone or with a picture, as queries. Token ids are a text's UTF-8 bytes: the library tokenizes."""

    trainable = False

    def __init__(self, network: Network) -> None:
        """Keep the network, whose weights are the tower's."""
        super().__init__()
        self.network, self.embed_dim = network, int(network.model.get_embedding_dimension())

    @property
    def model(self) -> Any:
        """The library's model."""
        return self.network.model

    @property
    def reads_both(self) -> bool:
        """Whether it reads a picture and a text together."""
        return self.network.reads_both

    def forward(self, text: TextBatch) -> torch.Tensor:
        """Vectors `[B, D]`, not normalised."""
        return self.network.encode([{"text": words} for words in _texts(text)], query=True)

    def together(self, packed_BL: torch.Tensor, text: TextBatch | None) -> torch.Tensor:
        """Vectors `[B, D]`, not normalised, of packed pictures with their texts, or alone."""
        pictures = _pictures(packed_BL)
        if text is None:
            return self.network.encode([{"image": picture} for picture in pictures], query=True)
        both = zip(pictures, _texts(text), strict=True)
        return self.network.encode([{"image": picture, "text": words} for picture, words in both], query=True)

    def tokenize(self, texts: Sequence[str], length: int) -> TextBatch:
        """The texts' bytes, whatever `length` is: the library cuts at the model's own.

        Raises DataError for an empty list.
        """
        if not texts:
            raise DataError("There is no text to encode. Give at least one modification text.")
        rows = [torch.tensor(list(words.encode()), dtype=torch.int64) for words in texts]
        ids_BT = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths_B = torch.tensor([len(row) for row in rows])
        return TextBatch(ids_BT, (torch.arange(ids_BT.shape[1]) < lengths_B[:, None]).long())

    def description(self) -> dict[str, Any]:
        """The network's digest."""
        return {"network": self.network.digest}

    def vocabulary(self) -> Mapping[str, int]:
        """Nothing: the network's digest says it."""
        return {}

    def save_words(self, folder: Path) -> None:
        """Nothing: the tower's files hold the tokenizer."""


def open_network(source: str | Path) -> Network:
    """The network of a folder; one that is in use is shared.

    Raises ArtifactError when it cannot be read, or needs code of its own, and ConfigError when the library is not
    installed, or the model does not read pictures and texts.
    """
    folder = Path(at_home(source)).absolute()
    stamps = [(name, path.stat().st_mtime_ns, path.stat().st_size) for name, path in copied(folder)]
    key = (str(folder), *stamps)
    network = _OPEN.get(key)
    if network is None:
        network = _OPEN[key] = Network(folder, _opened(folder, str(source)))
    return network


def _opened(folder: Path, source: str) -> Any:
    require("sentence_transformers", "embedders", f"The model {source!r}")
    for part in {folder, *(path.parent for _, path in copied(folder))}:
        refuse_pointers(part)
        check_weight_files(part)
    if code := next((kind for kind in module_types(folder) if own_code(kind)), ""):
        raise _refused(source, f"{code} in its {MODULES}")
    from sentence_transformers import SentenceTransformer

    try:
        with quiet():
            model = SentenceTransformer(str(folder), device="cpu", trust_remote_code=False, local_files_only=True)
    except (*READ_ERRORS, TypeError, AttributeError, ImportError) as error:
        if "trust_remote_code" in str(error):
            raise _refused(source, "auto_map in its JSON files") from None
        raise ArtifactError(
            f"No model of sentence-transformers could be read from {source!r}: {reason_of(error).rstrip('.')}. Fetch "
            f"all its files again, {MODULES} and the folders that it names among them."
        ) from None
    lacking = [name for name in ("image", "text") if not model.supports(name)]
    if lacking:
        reads = ", ".join(name for name in model.modalities if isinstance(name, str))
        raise ConfigError(
            f"{source!r} is a model of sentence-transformers that reads {reads}, and no {lacking[0]}. Give one that "
            "reads pictures and texts, such as sentence-transformers/clip-ViT-B-32."
        )
    return model


def _refused(source: str, code: str) -> ArtifactError:
    return ArtifactError(
        f"{source!r} has code of its own ({code}), which is never run here: it would need trust_remote_code. Give a "
        "model whose classes transformers and sentence-transformers have; a newer release of these may have them."
    )


def _pictures(packed_BL: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(pixels) for pixels in unpacked(packed_BL.cpu().numpy())]


def _texts(text: TextBatch) -> list[str]:
    rows = zip(text.ids_BT.tolist(), text.mask_BT.sum(dim=1).tolist(), strict=True)
    return [bytes(ids[:length]).decode() for ids, length in rows]


def load_tower(source: str, dtype: torch.dtype | None) -> EmbedderTower:
    """The picture side; the weights keep their stored type. Raises ArtifactError or ConfigError as `open_network`."""
    return EmbedderTower(open_network(source), _MEGAPIXEL)


def load_text(source: str) -> EmbedderText:
    """The text side. Raises ArtifactError or ConfigError as `open_network`."""
    return EmbedderText(open_network(source))


def build_text(description: Mapping[str, Any], words: Path) -> EmbedderText:
    """The text side of a saved retriever, whose network lies beside it as its tower.

    Raises ArtifactError when that is another network.
    """
    text = load_text(str(words / _VISION))
    if text.description() != dict(description):
        raise ArtifactError(
            f"The network in {str(words / _VISION)!r} is not the one that this retriever was made of. Make it again."
        )
    return text


def fits(source: str) -> bool:
    """Whether a folder's `modules.json` names modules of sentence-transformers alone, or is the only description."""
    types = module_types(Path(at_home(source)))
    return bool(types) and (not any(map(own_code, types)) or not (Path(at_home(source)) / "config.json").is_file())


BACKBONES.register(NAME)(
    Backbone(
        fits, load_tower, load_text, build_text, is_dual=fits,
        title="a model of sentence-transformers that reads pictures and texts",
    )
)  # fmt: skip


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
