"""What a file is by its first bytes; a `.pt` may be a web page, a pointer or another program's weights."""

import json
import re
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

from cirray.core.errors import ArtifactError

ACCEPTED = "Accepted are .safetensors files, and what torch.save wrote of a state dict (.pt, .pth, .bin)"
_HEAD = 4096
_TORCH_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_BEGINNINGS = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer, the weights themselves were not fetched (`git lfs pull` does that)",
    ),
    (b"/annex/objects/", "a git-annex pointer, the weights themselves were not fetched (`git annex get` does that)"),
    (b"GGUF", "a GGUF file (llama.cpp)"),
    (b"GGML", "a GGML file (llama.cpp)"),
    (b"lmgg", "a GGML file (llama.cpp)"),
    (b"\x89HDF\r\n", "an HDF5 file (TensorFlow, Keras)"),
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"\x1f\x8b", "compressed by gzip; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it first"),
    (b"\xfd7zXZ", "compressed by xz; unpack it first"),
    (b"BZh", "compressed by bzip2; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"%PDF", "a PDF document"),
    (b"PAR1", "a Parquet table"),
    (b"SQLite format", "an SQLite database"),
    (b"\x08\x01\x12", "a TensorFlow SavedModel"),
)
_NAMES = (
    (r"\.onnx$", "an ONNX model"),
    (r"\.tflite$", "a TensorFlow Lite model"),
    (r"\.h5$|\.keras$", "a Keras file (TensorFlow)"),
    (r"saved_model\.pb$", "a TensorFlow SavedModel"),
    (r"\.ckpt\.(index|meta)$|\.data-\d+-of-\d+$", "a part of a TensorFlow checkpoint"),
    (r"\.msgpack$", "a Flax checkpoint (JAX)"),
    (r"\.gguf$", "a GGUF file (llama.cpp; transformers' GgufConfig(dequantize=True) converts it)"),
)


def is_safetensors(path: Path) -> bool:
    """Whether a file begins like a safetensors file."""
    head = b"" if path.is_dir() else _head(path)
    return head[8:9] == b"{" and 2 <= struct.unpack("<Q", head[:8])[0] < 2**32


def refuse_other_files(path: Path) -> None:
    """Refuse a file without readable weights, or without all of them.

    Raises ArtifactError saying what the file is, and what would be accepted.
    """
    words = what_else(path)
    if words:
        raise ArtifactError(f"{str(path)!r} is {words}. {ACCEPTED}.")


def refuse_answer(path: Path) -> None:
    """Refuse a file that is empty, a pointer or a web page. Raises ArtifactError saying which."""
    words = _early(_head(path))
    if words:
        raise ArtifactError(f"{str(path)!r} is {words}. Fetch the file again.")


def refuse_pointers(folder: Path) -> None:
    """Refuse a folder in which a file of a model is a pointer or a web page.

    Raises ArtifactError naming the first such file and what it is.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix in (".json", ".txt", ".model", ".jinja") and path.is_file() and path.stat().st_size:
            refuse_answer(path)


def foreign_weights(names: Iterable[str]) -> str:
    """Description of other programs' weights among a folder's files; empty if there are none."""
    for name in sorted(names):
        for pattern, words in _NAMES:
            if re.search(pattern, name):
                return f"{name}, {words}"
    return ""


def what_else(path: Path) -> str:
    """Description of a file without readable weights; empty for safetensors, torch files and other pickles."""
    if path.is_dir():
        inside = ", ".join(sorted(item.name for item in path.iterdir())[:3]) or "nothing"
        return f"a folder (it holds {inside}) where a file is expected"
    head, size = _head(path), path.stat().st_size
    if is_safetensors(path):
        return _cut(path, head, size)
    early = _early(head)
    if early:
        return early
    if head.startswith(b"PK"):
        return _archive(path, size)
    if head.startswith(_TORCH_MAGIC) or (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05"):
        return ""
    return _other(path, head)


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read(_HEAD)
    except OSError as error:
        raise ArtifactError(f"{str(path)!r} cannot be read: {error.strerror}.") from None


def _early(head: bytes) -> str:
    """Description of a file that is never part of a model: empty, a pointer, a web page, another program's."""
    if not head:
        return "empty (0 bytes)"
    for beginning, words in _BEGINNINGS:
        if head.startswith(beginning):
            return words
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "a web page (HTML), most likely a site's error page in place of the file"
    if text.startswith((b"<?xml", b"<error")):
        return "an XML text, most likely a site's error page in place of the file"
    return "all zeros, as a broken download leaves it" if not head.strip(b"\0") else ""


def _cut(path: Path, head: bytes, size: int) -> str:
    """Description of a safetensors file that is shorter than its header says."""
    length = struct.unpack("<Q", head[:8])[0]
    if length + 8 > size:
        return f"a safetensors file cut off in its header ({size:,} bytes are there). Fetch or write it again"
    try:
        with open(path, "rb") as stream:
            tree = json.loads(stream.read(8 + length)[8:])
        ends = [entry["data_offsets"][1] for name, entry in tree.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return "a safetensors file whose header is damaged. Fetch or write it again"
    wanted = 8 + length + max(ends, default=0)
    return (
        f"a truncated safetensors file ({size:,} of {wanted:,} bytes are there). Fetch it again"
        if size < wanted
        else ""
    )


def _archive(path: Path, size: int) -> str:
    """Description of a zip archive that torch.save did not write."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return f"a truncated torch file or zip archive ({size:,} bytes are there, its end is missing). Fetch it again"
    if any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names):
        return (
            "a TorchScript archive (code with its weights); save the weights alone: torch.jit.load(FILE).state_dict()"
        )
    if any(re.search(r"(^|/)data\.pkl$", name) for name in names):
        return ""
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy archive (.npz)"
    inside = ", ".join(names[:3]) or "nothing"
    return f"a zip archive of something else (it holds {inside})"


def _other(path: Path, head: bytes) -> str:
    for pattern, words in _NAMES:
        if re.search(pattern, path.name):
            return words
    if head[:1] == b"\x08" and head[1:2] < b"\x10" and head[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x3a", b"\x42"):
        return "an ONNX model"
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite model"
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    try:
        text = head[: 4 * (len(head) // 4) - 4 if len(head) == _HEAD else None].decode()
    except UnicodeDecodeError:
        text = ""
    if text and all(char.isprintable() or char in "\r\n\t\ufeff" for char in text):
        kind = "JSON" if text.lstrip("\ufeff \r\n\t")[:1] in "{[" else "plain"
        return f"{kind} text ({' '.join(text.split())[:40]!r} ...)"
    return f"of an unknown format (it begins with the bytes {head[:8].hex(' ')})"
