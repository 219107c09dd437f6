"""Artifacts: a directory of data files plus `manifest.json`, which is written last.

A present manifest means a complete artifact. A local stage works in `<name>.partial` and is renamed at the end; on an
object store (no rename) it works in place. A killed stage is opened again and finds its finished shards; one in which
nothing was finished leaves nothing (`cirray.core.unfinished`).
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from cirray.core import storage, unfinished
from cirray.core.contents import content_digest, says_nothing
from cirray.core.environ import cache_folder
from cirray.core.errors import ArtifactError
from cirray.core.upgrades import with_new_fields
from cirray.core.version import __version__

MANIFEST, MARKER = "manifest.json", "stage.json"
SCHEMA_VERSION = 1
_PLACES = ("out", "ray", "pool", "device")


@dataclass(frozen=True)
class Manifest:
    """What made an artifact and what it holds. `digest` covers names, sizes and contents of the data files."""

    kind: str
    config: dict[str, Any]
    inputs: dict[str, str]
    counts: dict[str, int]
    metrics: dict[str, Any]
    digest: str
    created: str
    cirray_version: str = __version__
    schema_version: int = SCHEMA_VERSION
    seconds: float = 0.0
    """Wall time of the run that finished it; of a resumed one, since it was resumed."""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def stage_key(self) -> dict[str, Any]:
        """What must be equal for two runs to be the same stage: kind, config and input digests."""
        return {"kind": self.kind, "config": self.config, "inputs": self.inputs}

    def to_json(self) -> str:
        """Pretty JSON text of all fields."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"


@dataclass(frozen=True)
class Stage:
    """A directory being written. `finished` is set when the very same stage had been completed before.

    `kept` are patterns of the files that the same run, started again, goes on from; `fresh` says that it found none.
    """

    uri: str
    kind: str
    config: dict[str, Any]
    inputs: dict[str, str]
    finished: Manifest | None = None
    kept: tuple[str, ...] = ()
    fresh: bool = False
    begin: float = field(default_factory=time.monotonic, compare=False)

    @property
    def work_uri(self) -> str:
        """Where files are written before they are published; workers on other nodes may write here by URI."""
        return f"{storage.join(self.uri)}.partial" if storage.is_local(self.uri) else self.uri

    @property
    def local(self) -> Path:
        """A local folder for files written by this process (uploaded by publish() when the stage is remote)."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder

    @property
    def _folder(self) -> Path:
        if storage.is_local(self.uri):
            return storage.local_path(self.work_uri)
        return cache_folder() / "stages" / hashlib.blake2b(self.uri.encode(), digest_size=8).hexdigest()

    def publish(
        self,
        counts: Mapping[str, int],
        metrics: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Write the manifest and make the artifact visible under its final name."""
        if not storage.is_local(self.uri):
            storage.upload_folder(self.local, self.uri)
            shutil.rmtree(self.local, ignore_errors=True)
        manifest = Manifest(
            kind=self.kind, config=self.config, inputs=dict(self.inputs), counts=dict(counts),
            metrics=dict(metrics or {}), digest=directory_digest(self.work_uri),
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), extra=dict(extra or {}),
            seconds=round(time.monotonic() - self.begin, 2),
        )  # fmt: skip
        storage.write_bytes(storage.join(self.work_uri, MANIFEST), manifest.to_json().encode())
        if storage.is_local(self.uri):
            os.replace(storage.local_path(self.work_uri), storage.local_path(self.uri))
        return manifest

    def discard(self) -> None:
        """Drop everything written so far; a finished artifact stays."""
        if storage.is_local(self.uri) or not is_complete(self.uri):
            storage.remove(self.work_uri)
        storage.remove(str(self._folder))

    def has_worth(self) -> bool:
        """Whether it is finished, or holds files of the kinds in `kept`."""
        if not storage.is_local(self.uri) and is_complete(self.uri):
            return True
        names = {*storage.list_files(self.work_uri), *storage.list_files(str(self._folder))}
        return any(fnmatch(name, pattern) for name in names for pattern in self.kept)


def open_stage(
    uri: str | Path, kind: str, config: Mapping[str, Any], inputs: Mapping[str, str] | None = None,
    kept: Sequence[str] = (),
) -> Stage:  # fmt: skip
    """Begin, resume or recognise a stage.

    Half-written work of another run stands in the way only if it is worth something; with `unfinished.restarting` all
    of it is thrown away.

    Args:
        uri: final directory of the artifact (path or URI).
        kind: artifact kind, e.g. "features".
        config: resolved configuration, plain values.
        inputs: name -> digest of every artifact read.
        kept: patterns of the files that the same run, started again, goes on from (`shards/*`); none: it starts anew.

    Raises:
        ArtifactError: when another artifact, made from another config or inputs, stands or is half-written at `uri`.
    """
    stage = Stage(str(uri), kind, _plain(config), dict(inputs or {}), kept=tuple(kept))
    key = {"kind": kind, "config": stage.config, "inputs": stage.inputs}
    if is_complete(uri):
        manifest = read_manifest(uri, kind)
        _check_same(uri, key, manifest.stage_key)
        return replace(stage, finished=manifest)
    unfinished.opened(stage)
    marker = storage.join(stage.work_uri, MARKER)
    if storage.exists(marker):
        found = _read_marker(marker)
        earlier = replace(stage, kept=tuple(found.pop("kept", stage.kept)))
        other = _differences(key, found)
        if not other and not unfinished.restarts():
            return stage
        if other and earlier.has_worth() and not unfinished.restarts():
            raise ArtifactError(
                f"{str(uri)!r} is half-written by a different run ({other}). Add --restart to throw that work away and "
                "start anew, go on with the earlier settings, or choose another --out."
            )
        stage.discard()
    _begin(stage, key, marker)
    return replace(stage, fresh=True)


def check_place(uri: str | Path, kind: str, config: Mapping[str, Any]) -> None:
    """Refuse, before any work, a place that `open_stage` would refuse whatever the inputs turn out to be.

    Raises:
        ArtifactError: when something else, or an artifact of another kind or config, stands at `uri`.
    """
    if is_complete(uri):
        found = read_manifest(uri, kind).stage_key
        _check_same(uri, {"kind": kind, "config": _plain(config), "inputs": found["inputs"]}, found)
    elif storage.is_local(uri):
        _check_free(uri)


def _check_free(uri: str | Path) -> None:
    if storage.local_path(uri).exists():
        raise ArtifactError(f"{str(uri)!r} exists but is no artifact (no {MANIFEST}). Choose another --out.")


def _begin(stage: Stage, key: Mapping[str, Any], marker: str) -> None:
    """Start with nothing but the marker, which says whose work this is."""
    if storage.is_local(stage.uri):
        _check_free(stage.uri)
        stage.discard()
    storage.write_bytes(marker, json.dumps({**key, "kept": stage.kept}, indent=2, sort_keys=True).encode())


def _read_marker(marker: str) -> dict[str, Any]:
    """Whose work lies there; a damaged marker is nobody's."""
    try:
        found = json.loads(storage.read_bytes(marker))
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


def is_complete(uri: str | Path) -> bool:
    """True when the directory holds a manifest."""
    return storage.exists(storage.join(uri, MANIFEST))


def read_manifest(uri: str | Path, kind: str | None = None) -> Manifest:
    """Manifest of a complete artifact.

    Raises:
        ArtifactError: missing, incomplete, of another kind or schema; the sentence says which stage makes it.
    """
    if not is_complete(uri):
        wanted, maker = f" of kind {kind!r}" if kind else "", "the stage that makes it"
        maker += " (of released weights, `cirray convert`)" if kind == "checkpoint" else ""
        raise ArtifactError(f"The artifact{wanted} at {str(uri)!r} {_absence(uri)}. Run {maker} first.")
    try:
        manifest = Manifest(**json.loads(storage.read_bytes(storage.join(uri, MANIFEST))))
        _check_types(manifest)
    except (ValueError, TypeError) as error:
        reason = str(error).replace("Manifest.__init__()", "it")
        raise ArtifactError(f"The manifest of {str(uri)!r} is damaged: {reason}. Make the artifact again.") from None
    if manifest.schema_version > SCHEMA_VERSION:
        raise ArtifactError(
            f"{str(uri)!r} has schema version {manifest.schema_version}; this cirray reads up to {SCHEMA_VERSION}."
        )
    if kind and manifest.kind != kind:
        raise ArtifactError(f"{str(uri)!r} is an artifact of kind {manifest.kind!r}; {kind!r} is needed here.")
    return manifest


def _absence(uri: str | Path) -> str:
    """What stands where an artifact was expected, in words."""
    if storage.is_local(uri) and Path(f"{storage.local_path(uri)}.partial").exists():
        return "is only half-written (run its stage again to resume it)"
    if not storage.exists(uri):
        return "does not exist"
    is_file = storage.is_local(uri) and storage.local_path(uri).is_file()
    return "is a file, no artifact" if is_file else f"is no artifact (it holds no {MANIFEST})"


def _check_types(manifest: Manifest) -> None:
    """Refuse a manifest whose fields hold something else than they must.

    Raises:
        ValueError: naming the first such field.
    """
    kinds = {"kind": str, "digest": str, "schema_version": int, "config": dict, "inputs": dict, "counts": dict,
             "metrics": dict, "extra": dict}  # fmt: skip
    for name, kind in kinds.items():
        value = getattr(manifest, name)
        if not isinstance(value, kind):
            raise ValueError(f"{name} holds a {type(value).__name__} where a {kind.__name__} is needed")


def localize(uri: str | Path, kind: str | None = None) -> Path:
    """Local folder of a complete artifact; a remote one is downloaded once into the cache, keyed by its digest."""
    manifest = read_manifest(uri, kind)
    if storage.is_local(uri):
        return storage.local_path(uri)
    target = cache_folder() / "artifacts" / f"{manifest.kind}-{manifest.digest}"
    if not (target / MANIFEST).exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        storage.download_folder(uri, target)
    return target


def model_folder(folder: Path) -> tuple[Path, str]:
    """Where in an artifact the model's files lie, and what they are: "retriever" or "generator".

    Raises:
        ArtifactError: when there is none.
    """
    for place in (folder, folder / "model"):
        try:
            description = json.loads((place / "config.json").read_text())
        except (OSError, ValueError):
            continue
        if isinstance(description, dict) and "kind" in description:
            return place, "retriever" if "retriever" in description else "generator"
    raise ArtifactError(
        f"{str(folder)!r} holds no model of cirray's. Give a checkpoint or generator artifact, or an exported folder."
    )


def directory_digest(uri: str | Path) -> str:
    """Digest of all data files below a URI (manifest and stage marker excluded), independent of their dates.

    Settings files of libraries count by what they say (`cirray.core.contents`): the same model, saved by two releases
    of transformers, has one digest.
    """
    total = hashlib.blake2b(digest_size=16)
    for name in storage.list_files(uri):
        if name not in (MANIFEST, MARKER) and not says_nothing(name):
            total.update(f"{name}\x1f{content_digest(storage.join(uri, name))}\x1f".encode())
    return total.hexdigest()


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(config), sort_keys=True, default=str))


def _check_same(uri: str | Path, wanted: dict[str, Any], found: dict[str, Any]) -> None:
    other = _differences(wanted, found)
    if other:
        raise ArtifactError(
            f"{str(uri)!r} was made by a different run ({other}). Choose another --out, or delete it if it is not "
            "needed any more."
        )


def _differences(wanted: dict[str, Any], found: dict[str, Any]) -> str:
    """What of kind, config and inputs differs, in words; empty when nothing does."""
    names = ("kind", "config", "inputs")
    if not all(isinstance(found.get(name), str if name == "kind" else dict) for name in names):
        return "its own description is damaged"
    wanted, found = _content(wanted), _content(found)
    if with_new_fields(found, wanted) == wanted:
        return ""
    return "; ".join(_difference(name, wanted[name], found[name]) for name in names if wanted[name] != found[name])


def _content(key: dict[str, Any]) -> dict[str, Any]:
    """A stage key without the fields that say where and on what a stage runs; they do not change what it writes."""
    return {**key, "config": {name: value for name, value in dict(key["config"]).items() if name not in _PLACES}}


def _difference(name: str, wanted: Any, found: Any) -> str:
    if not isinstance(wanted, dict) or not isinstance(found, dict):
        return f"{name}: {found!r} there, {wanted!r} now"
    for key in sorted(set(wanted) | set(found)):
        if wanted.get(key) != found.get(key):
            return _difference(f"{name}.{key}", wanted.get(key), found.get(key))
    return name
