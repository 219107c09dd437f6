"""Artifacts: a directory of data files plus `manifest.json`, which is written last.

A present manifest means a complete artifact. A local stage works in `<name>.partial` and is renamed at the end; on an
object store (no rename) it works in place. A killed stage finds its finished shards again; one without any leaves
nothing (`cirray.core.unfinished`).
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
from typing import Any, Protocol

from cirray.core import storage, unfinished
from cirray.core.contents import MANIFEST, MARKER, digests_below, directory_digest, file_digest, joint_digest
from cirray.core.environ import cache_folder
from cirray.core.errors import ArtifactError
from cirray.core.identity import differences, readings
from cirray.core.unfinished import settle, take_place
from cirray.core.version import __version__

SCHEMA_VERSION = 2
_EARLIER = "by an earlier, incompatible version"


class Run(Protocol):
    """What a stage needs of its configuration."""

    @property
    def out(self) -> str:
        """Where its artifact goes (path or URI)."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values of all fields."""

    def identity(self) -> dict[str, Any]:
        """Plain values of those that decide the result."""


@dataclass(frozen=True)
class Manifest:
    """An artifact's origin and content. `digest` covers names, sizes and contents of the data files.

    `config`: the whole resolved configuration, for people. `identity`: its fields that decide the result.
    """

    kind: str
    config: dict[str, Any]
    identity: dict[str, Any]
    inputs: dict[str, str]
    counts: dict[str, int]
    metrics: dict[str, Any]
    digest: str
    created: str
    cirray_version: str = __version__
    schema_version: int = SCHEMA_VERSION
    seconds: float = 0.0
    """Wall time of the run that finished it, since its last start."""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def stage_key(self) -> dict[str, Any]:
        """Key of the stage: kind, identity and input digests."""
        return {"kind": self.kind, "identity": self.identity, "inputs": self.inputs}

    def to_json(self) -> str:
        """Pretty JSON text of all fields."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"


@dataclass(frozen=True)
class Stage:
    """A directory being written. `finished`: the same stage was completed before.

    `kept`: patterns of the files that a restarted run resumes from. `fresh`: none were found. `former`: the artifact of
    other inputs whose place it takes.
    """

    uri: str
    kind: str
    config: dict[str, Any]
    identity: dict[str, Any]
    inputs: dict[str, str]
    finished: Manifest | None = None
    former: Manifest | None = None
    kept: tuple[str, ...] = ()
    fresh: bool = False
    begin: float = field(default_factory=time.monotonic, compare=False)

    @property
    def key(self) -> dict[str, Any]:
        """Key of the stage."""
        return {"kind": self.kind, "identity": self.identity, "inputs": self.inputs}

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
        self, counts: Mapping[str, int], metrics: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Manifest:  # fmt: skip
        """Write the manifest and make the artifact visible under its final name."""
        manifest = Manifest(
            kind=self.kind, config=self.config, identity=self.identity, inputs=dict(self.inputs), counts=dict(counts),
            metrics=dict(metrics or {}), digest="", extra=dict(extra or {}),
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            seconds=round(time.monotonic() - self.begin, 2),
        )  # fmt: skip
        if not storage.is_local(self.uri):  # from here on only the upload is left, also to another process
            storage.write_bytes(self.local / MANIFEST, manifest.to_json().encode())
        return self.deliver(manifest)

    def deliver(self, manifest: Manifest) -> Manifest:
        """Make a finished stage visible under its name: by a rename, or an upload with the manifest last."""
        local = storage.is_local(self.uri)
        storage.sweep(self._folder)
        digests = digests_below(self.work_uri, {} if local else digests_below(str(self.local)))
        manifest = replace(manifest, digest=joint_digest(digests))
        storage.write_bytes(self.local / MANIFEST, manifest.to_json().encode())
        if local:
            put = take_place if self.former else os.replace
            put(self._folder, storage.local_path(self.uri))
        else:
            storage.upload_folder(self._folder, self.uri)
            shutil.rmtree(self._folder, ignore_errors=True)
        return manifest

    def discard(self) -> None:
        """Drop everything written so far; a finished artifact stays."""
        if storage.is_local(self.uri) or not is_complete(self.uri):
            storage.remove(self.work_uri)
        storage.remove(str(self._folder))

    def has_worth(self) -> bool:
        """Whether it is finished, or has files that match `kept`."""
        if not storage.is_local(self.uri) and ((self._folder / MANIFEST).exists() or is_complete(self.uri)):
            return True
        names = {*storage.list_files(self.work_uri), *storage.list_files(str(self._folder))}
        return any(fnmatch(name, pattern) for name in names for pattern in self.kept)


def open_stage(
    run: Run, kind: str, inputs: Mapping[str, str] | None = None, kept: Sequence[str] = (),
    living: Sequence[str] = (),
) -> Stage:  # fmt: skip
    """Begin, resume or recognise a stage.

    Half-written work of another run is an error only if it has finished parts; with `unfinished.restarting` it is
    thrown away.

    Args:
        run: the configuration.
        kind: artifact kind, e.g. "features".
        inputs: digests of inputs by their field (`features 0`, `data`, `validation.data`); empty: not read. Other
            places are digested here (`place_digest`).
        kept: patterns of the files that a restarted run resumes from (`shards/*`); none: it starts anew.
        living: inputs that may have changed since. A local artifact of the same settings that has one of them is then
            replaced when this one is published, whatever its inputs were; half-written work is resumed if no other
            input differs.

    Raises:
        ArtifactError: when an artifact of another config or other inputs is at `out`, finished or half-written.
    """
    stage = Stage(str(run.out), kind, run.to_dict(), run.identity(), _all_inputs(run, inputs or {}), kept=tuple(kept))
    if storage.is_local(stage.uri):
        settle(storage.local_path(stage.work_uri), storage.local_path(stage.uri), MANIFEST)
    if is_complete(stage.uri):
        found_there = read_manifest(stage.uri, kind)
        replaced = storage.is_local(stage.uri) and any(name in found_there.inputs for name in living)
        wanted = {**stage.key, "inputs": found_there.inputs} if replaced else stage.key
        _check_same(stage.uri, wanted, found_there.stage_key)
        if found_there.inputs == stage.inputs:
            return replace(stage, finished=found_there)
        stage = replace(stage, former=found_there)
    unfinished.opened(stage)
    marker = storage.join(stage.work_uri, MARKER)
    if storage.exists(marker):
        found = _read_marker(marker)
        other = _EARLIER if _is_earlier(found) else differences(_steady(stage.key, living), _steady(found, living))
        if not other and not unfinished.restarts():
            if is_complete(stage.local) and (made := read_manifest(stage.local)).stage_key == stage.key:
                return replace(stage, finished=stage.deliver(made))
            if living:
                _go_on(stage, marker)
            return stage
        _refuse_worth(replace(stage, kept=tuple(found.get("kept", stage.kept))), other)
        stage.discard()
    _begin(stage, marker)
    return replace(stage, fresh=True)


def check_place(run: Run, kind: str) -> None:
    """Refuse, before any work, a place that `open_stage` would refuse with any inputs.

    Raises:
        ArtifactError: when something else, or an artifact of another kind or config, is at `out`.
    """
    if is_complete(run.out):
        found = read_manifest(run.out, kind).stage_key
        _check_same(run.out, {"kind": kind, "identity": run.identity(), "inputs": found["inputs"]}, found)
    elif storage.is_local(run.out):
        _check_free(run.out)


def place_digest(place: str, kind: str | None = None) -> str:
    """Digest of an artifact, a folder or a file (also of the file in `NAME=FILE`); any other name stands for itself.

    Raises:
        ArtifactError: when `kind` is given and the place is no complete artifact of it.
    """
    if kind or is_complete(place):
        return read_manifest(place, kind).digest
    if storage.exists(place):
        return file_digest(place) if storage.is_file(place) else directory_digest(place)
    name, equals, file = place.partition("=")
    return f"{name}={file_digest(file)}" if equals and storage.is_file(file) else place


def _all_inputs(run: Run, given: Mapping[str, str]) -> dict[str, str]:
    """The stage's own digests, and those of its configuration's other places."""
    inputs = dict(given)
    for reading in readings(run):
        if any(_covers(name, reading.path) for name in given):
            continue
        if reading.place is None:
            raise TypeError(f"The stage of {type(run).__name__} gives no digest of what it reads in {reading.path!r}.")
        inputs[reading.name] = place_digest(reading.place, reading.kind)
    return {name: digest for name, digest in inputs.items() if digest}


def _covers(name: str, path: str) -> bool:
    """Whether an input's name (`features 0`, `data`) is of the place or section at `path`."""
    return f"{name} ".startswith(f"{path} ") or path.startswith(f"{name}.")


def _refuse_worth(found: Stage, other: str) -> None:
    """Refuse to throw away another run's useful work, unless asked to."""
    if not other or unfinished.restarts() or not found.has_worth():
        return
    whose = other if other == _EARLIER else f"by a different run ({other})"
    ways = "" if other == _EARLIER else "go on with the earlier settings, "
    raise ArtifactError(
        f"{found.uri!r} is half-written {whose}. Add --restart to throw that work away and start anew, {ways}or choose "
        "another --out."
    )


def _check_free(uri: str | Path) -> None:
    if storage.local_path(uri).exists():
        raise ArtifactError(f"{str(uri)!r} exists but is no artifact (no {MANIFEST}). Choose another --out.")


def _steady(key: Mapping[str, Any], living: Sequence[str]) -> dict[str, Any]:
    """A stage's key without the inputs that may change."""
    inputs = key.get("inputs")
    kept = {name: it for name, it in inputs.items() if name not in living} if isinstance(inputs, dict) else None
    return {**key, "inputs": kept}


def _go_on(stage: Stage, marker: str) -> None:
    """Keep only what another run resumes from, under this one's marker."""
    for name in storage.list_files(stage.work_uri):
        if not any(fnmatch(name, pattern) for pattern in stage.kept):
            storage.remove(storage.join(stage.work_uri, name))
    _mark(stage, marker)


def _begin(stage: Stage, marker: str) -> None:
    """Start with only the marker, which identifies the run."""
    if storage.is_local(stage.uri):
        if stage.former is None:
            _check_free(stage.uri)
        stage.discard()
    else:
        storage.remove(str(stage._folder))
    _mark(stage, marker)


def _mark(stage: Stage, marker: str) -> None:
    told = {**stage.key, "kept": stage.kept, "schema_version": SCHEMA_VERSION}
    storage.write_bytes(marker, json.dumps(told, indent=2, sort_keys=True).encode())


def _read_marker(marker: str) -> dict[str, Any]:
    """The run whose work is there; empty if the marker is damaged."""
    try:
        found = json.loads(storage.read_bytes(marker))
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


def _is_earlier(tree: Mapping[str, Any]) -> bool:
    """Whether an earlier version, with other identities, wrote a manifest or marker."""
    version = tree.get("schema_version", 1 if tree else SCHEMA_VERSION)
    return isinstance(version, int) and version < SCHEMA_VERSION


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
        tree = json.loads(storage.read_bytes(storage.join(uri, MANIFEST)))
        if isinstance(tree, dict) and _is_earlier(tree):
            raise ArtifactError(
                f"{str(uri)!r} was made {_EARLIER}; run its stage again, after deleting it or with another --out."
            )
        manifest = Manifest(**tree)
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
    """What is there instead of an artifact, in words."""
    if storage.is_local(uri) and Path(f"{storage.local_path(uri)}.partial").exists():
        return "is only half-written (run its stage again to resume it)"
    if not storage.exists(uri):
        return "does not exist"
    is_file = storage.is_local(uri) and storage.local_path(uri).is_file()
    return "is a file, no artifact" if is_file else f"is no artifact (it holds no {MANIFEST})"


def _check_types(manifest: Manifest) -> None:
    """Refuse a manifest with fields of wrong types.

    Raises:
        ValueError: naming the first such field.
    """
    kinds = {"kind": str, "digest": str, "schema_version": int, "config": dict, "identity": dict, "inputs": dict,
             "counts": dict, "metrics": dict, "extra": dict}  # fmt: skip
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


def _check_same(uri: str | Path, wanted: dict[str, Any], found: dict[str, Any]) -> None:
    other = differences(wanted, found)
    if other:
        raise ArtifactError(
            f"{str(uri)!r} was made by a different run ({other}). Choose another --out, or delete it if it is not "
            "needed any more."
        )
