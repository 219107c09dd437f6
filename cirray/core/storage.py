"""One small view of storage: local paths, and any URI that pyarrow's or fsspec's filesystems open (`s3://`, `az://`)."""

import os
import posixpath
import shutil
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from cirray.core import written
from cirray.core.environ import store_patience_s
from cirray.core.errors import ArtifactError, CirrayError, reason_of
from cirray.core.interrupts import store_call
from cirray.core.refusals import refused
from cirray.core.texts import is_whole

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import fs as pafs  # at run time imported where it is used: `cirray --help` needs no Arrow

COPIES = 8
"""Files that are copied at the same time."""
_PIECE_BYTES = 4 * 2**20
_PATIENCE: ContextVar[float | None] = ContextVar("cirray_store_patience", default=None)
_OF_ARROW = ("s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss", "hf", "mock")


def is_local(uri: str | Path) -> bool:
    """True for plain paths and `file://` URIs."""
    return "://" not in str(uri) or str(uri).startswith("file://")


def local_path(uri: str | Path) -> Path:
    """The path behind a local URI. Raises ArtifactError: for a URI that is not local."""
    text = str(uri)
    if not is_local(text):
        raise ArtifactError(f"{text!r} is not a local path; localize() it first.")
    return Path(text.removeprefix("file://")).expanduser()


def join(uri: str | Path, *parts: str) -> str:
    """Append path parts to a path or URI, keeping a `?query` at the end where it belongs."""
    if is_local(uri):
        return str(Path(str(uri).removeprefix("file://")).expanduser().joinpath(*parts))
    base, mark, query = str(uri).partition("?")
    return posixpath.join(base.rstrip("/"), *parts) + mark + query


def without_query(uri: str | Path) -> str:
    """A path as it is; a URI without the `?query` that says how it is reached."""
    return str(uri) if is_local(uri) else str(uri).partition("?")[0]


def url(uri: str | Path) -> str:
    """The address of a file for people to open: `file://` with the whole path, other URIs as they are."""
    return local_path(uri).absolute().as_uri() if is_local(uri) else str(uri)


def resolve(uri: str | Path) -> "tuple[pafs.FileSystem, str]":
    """Filesystem and path of a URI. An S3 that answers 503, or does not answer, is asked again (`hurried`).

    Raises ArtifactError naming the URI when its scheme is unknown, the store cannot be reached, or it is no UTF-8 text.
    """
    import pyarrow as pa
    from pyarrow import fs as pafs

    if is_local(uri):
        return pafs.LocalFileSystem(), str(_local_file(uri))
    try:
        filesystem, path = pafs.FileSystem.from_uri(_of_arrow_or_fsspec(str(uri)))
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError, ValueError, ImportError) as error:
        reason = reason_of(error, 200).rstrip(".")
        raise ArtifactError(
            f"Storage URI {str(uri)!r} cannot be opened: {reason}. Use a path, or file://, s3://, gs://, hf:// ..."
        ) from None
    if filesystem.type_name == "s3":
        from cirray.core.patient import opened

        patience_s = _PATIENCE.get()
        filesystem = opened(str(uri), filesystem, store_patience_s() if patience_s is None else patience_s)
    return filesystem, path


@contextmanager
def hurried(patience_s: float = 1.0) -> Iterator[None]:
    """Inside, in this thread, a store that does not answer is an error after about so many seconds.

    Elsewhere it is one after `CIRRAY_STORE_PATIENCE_S`, 50 by default.
    """
    token = _PATIENCE.set(patience_s)
    try:
        yield
    finally:
        _PATIENCE.reset(token)


def asking(uri: str | Path) -> AbstractContextManager[None]:
    """Inside, a URI's store may be waited for, and Ctrl-C ends the process all the same."""
    return nullcontext() if is_local(uri) else store_call()


@contextmanager
def told(uri: str | Path, what: str) -> Iterator[None]:
    """Inside, what a disk or store refuses is one sentence.

    Args:
        uri: the file or folder.
        what: what is done with it: read, written, deleted.

    Raises StoreError: it is full, read-only, closed to this user, or away; ArtifactError: there is nothing to read.
    """
    try:
        with asking(uri):
            yield
    except (CirrayError, UnicodeError):
        raise
    except (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        raise ArtifactError(f"{str(uri)!r} cannot be {what}: {error.strerror or reason_of(error, 200)}.") from None
    except Exception as error:  # noqa: BLE001 - those of fsspec's filesystems are their libraries' own
        raise refused(str(uri), what, error) from None


def exists(uri: str | Path) -> bool:
    """True when a file or folder stands at the URI."""
    return _info(uri).type.name != "NotFound"


def is_file(uri: str | Path) -> bool:
    """True when a file, no folder, stands at the URI."""
    return bool(_info(uri).is_file)


def list_files(uri: str | Path) -> list[str]:
    """Names of all files below a URI, relative to it, sorted; an absent folder has none.

    Raises ArtifactError when a name is not UTF-8 text.
    """
    from pyarrow.fs import FileSelector

    filesystem, path = resolve(uri)
    selector = FileSelector(path, recursive=True, allow_not_found=True)
    try:
        with told(uri, "read"):
            found = [info.path for info in filesystem.get_file_info(selector) if info.is_file]
    except UnicodeDecodeError as error:
        name = error.object.decode("utf-8", "backslashreplace")
        raise ArtifactError(f"{name!r} below {str(uri)!r} is no UTF-8 name; rename that file.") from None
    return sorted(posixpath.relpath(name, path) for name in found)


def read_bytes(uri: str | Path) -> bytes:
    """Content of one file. Raises ArtifactError naming a URI without one, and StoreError as `told`."""
    filesystem, path = resolve(uri)
    with told(uri, "read"), filesystem.open_input_stream(path) as stream:
        return stream.read()


def write_bytes(uri: str | Path, data: "bytes | pa.Buffer") -> None:
    """Write one file so that readers see the whole content or none of it (temporary name + rename, or one PUT).

    Raises StoreError naming the URI when it cannot be written (full disk, no permission, unreachable store).
    """
    with told(uri, "written"):
        if is_local(uri):
            _write_local(_local_file(uri), data)
        else:
            filesystem, path = resolve(uri)
            with filesystem.open_output_stream(path) as stream:
                stream.write(data)
            written.note(str(uri), data)


def upload_folder(source: Path, uri: str | Path) -> None:
    """Copy every file below a local folder to a URI, several at once and piece by piece, `manifest.json` last.

    Raises ArtifactError naming the file that cannot be copied.
    """
    names = [str(item.relative_to(source)) for item in source.rglob("*") if item.is_file()]
    _copy((name for name in names if name != "manifest.json"), str(source), uri)
    _copy((name for name in names if name == "manifest.json"), str(source), uri)


def download_folder(uri: str | Path, target: Path) -> Path:
    """Copy every file below a URI to a local folder that appears whole or not at all.

    Raises ArtifactError naming the file that cannot be copied.
    """
    scratch = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.download")
    try:
        _copy(list_files(uri), uri, scratch)
        os.replace(scratch, target)
    except OSError:
        if not target.exists():
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def remove(uri: str | Path) -> None:
    """Delete a file or a folder with all it holds; an absent one is fine. Raises StoreError as `told`."""
    filesystem, path = resolve(uri)
    with told(uri, "deleted"):
        info = filesystem.get_file_info(path)
        if info.type.name == "Directory":
            filesystem.delete_dir(path)
        elif info.is_file:
            filesystem.delete_file(path)


def sweep(folder: Path) -> None:
    """Delete what writers that were killed left half-written below a local folder."""
    for scratch in list(folder.rglob(".*.tmp")):
        remove(scratch)


def _info(uri: str | Path) -> "pafs.FileInfo":
    filesystem, path = resolve(uri)
    with told(uri, "read"):
        return filesystem.get_file_info(path)


def _of_arrow_or_fsspec(uri: str) -> str:
    """The URI as `FileSystem.from_uri` takes it: a scheme that only fsspec knows says so."""
    scheme = uri.partition("://")[0]
    if scheme in _OF_ARROW:
        return uri
    from fsspec import available_protocols  # type: ignore[import-untyped]

    return f"fsspec+{uri}" if scheme in available_protocols() else uri


def _copy(names: Iterable[str], source: str | Path, target: str | Path) -> None:
    """Copy files from below one place to below another."""
    from pyarrow.fs import copy_files

    (filesystem, root), (other, end) = resolve(source), resolve(target)

    def copy(name: str) -> None:
        """Copy one file; the first that fails names itself."""
        place = posixpath.join(end, name)
        with told(join(source, name), f"copied to {join(target, name)!r}"):
            if is_local(target):
                Path(place).parent.mkdir(parents=True, exist_ok=True)
            written.take(join(target, name))
            with asking(target):
                copy_files(
                    posixpath.join(root, name), place, filesystem, other, chunk_size=_PIECE_BYTES, use_threads=False
                )

    with ThreadPoolExecutor(COPIES) as pool:
        for _ in pool.map(copy, names):
            pass


def _local_file(uri: str | Path) -> Path:
    path = local_path(uri).absolute()
    if not is_whole(str(path)):
        raise ArtifactError(f"The path {str(path)!r} holds bytes that are not UTF-8; use another path.")
    return path


def _write_local(path: Path, data: "bytes | pa.Buffer") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(scratch, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
