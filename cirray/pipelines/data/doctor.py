"""`cirray doctor`: read every annotation, decode every image once (Ray Data tasks, or this process), report."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa

from cirray.core import storage
from cirray.core.artifacts import check_place, open_stage
from cirray.core.config import validate
from cirray.core.errors import ConfigError, DataError, unknown_name
from cirray.core.places import at_root
from cirray.core.trees import merged
from cirray.core.unfinished import stage_function
from cirray.data.annotations import MissingFileError
from cirray.data.benchmark import CirDataset
from cirray.data.config import DataConfig, ImageLimits
from cirray.data.doctor import (
    DoctorReport,
    Finding,
    GallerySize,
    ImageCheck,
    annotation_findings,
    check_box,
    check_image,
    gallery_sizes,
    image_findings,
    size_findings,
    with_accepted,
)
from cirray.data.places import Place
from cirray.data.quirks import ONLY_SPLIT, SPLITS
from cirray.pipelines.cluster.parts import Cut, Parts, each_part
from cirray.pipelines.cluster.streaming import Columns, Step
from cirray.pipelines.data.config import DoctorRun
from cirray.pipelines.data.datasets import open_dataset
from cirray.triplets.store import write_table
from cirray.types import stable_id

KIND, REPORT, TABLE = "doctor", "report.json", "images.parquet"
_NAMES = ("code", "reason", "bytes", "digest", "format", "width", "height")


@stage_function
def run_doctor(run: DoctorRun) -> DoctorReport:
    """Check a data set on disk.

    Returns: The report; with `out`, also an artifact of kind "doctor": `report.json`, and `images.parquet` with the
    hash, size and format of every image.

    Raises ConfigError: an unknown data set or split; DataError: nothing can be read (the exit status is then 2).
    """
    if run.out:
        check_place(run, KIND)
    data = data_of(run)
    datasets, findings = _read_all(run, data)
    places = {name: dataset.images.place(name) for dataset in datasets.values() for name in dataset.images}
    checks = _check(run, places) if run.decode else None
    galleries: list[GallerySize] = []
    part = f"/{data.fashioniq.category}" if data.format == "fashioniq" and data.fashioniq.category != "all" else ""
    for split, dataset in ((f"{name}{part}", dataset) for name, dataset in datasets.items()):
        findings += annotation_findings(dataset, data.format, split) + size_findings(dataset, data.format, split)
        galleries += gallery_sizes(dataset, data.format, split, checks)
    if checks is not None:
        findings = image_findings(checks, {image: _file(place) for image, place in places.items()}) + findings
    report = DoctorReport(
        dataset=data.format,
        counts={"images": len(places), "queries": sum(len(dataset.queries) for dataset in datasets.values()),
                "triplets": max(len(dataset.triplets) for dataset in datasets.values())},
        galleries=tuple(galleries),
        findings=with_accepted(findings, run.accept),
        digest=_digest(checks),
        as_json=run.as_json,
    )  # fmt: skip
    if run.out:
        _publish(run, report, places, checks)
    return report


def data_of(run: DoctorRun) -> DataConfig:
    """The data config of `folder` and `dataset`. Raises ConfigError for an unknown data set."""
    name = run.dataset or run.data.format
    if name not in DataConfig.model_fields or not hasattr(getattr(run.data, name), "root"):
        known = [field for field in DataConfig.model_fields if hasattr(getattr(run.data, field), "root")]
        raise ConfigError(unknown_name("dataset", name, known))
    said = merged(run.data.given(), {"format": name, name: {"root": run.folder} if run.folder else {}})
    return at_root(validate(DataConfig, said), run.root)


def check_images(columns: Columns, limits: Mapping[str, Any]) -> Columns:
    """Check the images of one part.

    Args:
        columns: `place` and the part's number.
        limits: fields of an `ImageLimits`.

    Returns: `place` and the fields of `ImageCheck`.
    """
    caps = ImageLimits(**limits)
    checks = [check_image(Place.parse(str(place)), caps) for place in columns["place"]]
    found: Columns = {"place": columns["place"]}
    for name in _NAMES:
        kind = np.int64 if name in ("bytes", "width", "height") else object
        found[name] = np.array([getattr(check, name) for check in checks], dtype=kind)
    return found


def _read_all(run: DoctorRun, data: DataConfig) -> tuple[dict[str, CirDataset], list[Finding]]:
    """Every readable split, and findings about the others."""
    field, names = SPLITS.get(data.format, ("", (ONLY_SPLIT.get(data.format, "all"),)))
    unknown = [name for name in run.splits if name not in names]
    if unknown:
        raise ConfigError(unknown_name("split", unknown[0], names))
    found: dict[str, CirDataset] = {}
    findings: list[Finding] = []
    errors: list[DataError] = []
    for name in run.splits or names:
        section = getattr(data, data.format)
        chosen = section.model_copy(update={field: name}) if field else section
        try:
            found[name] = open_dataset(data.model_copy(update={data.format: chosen}))
        except DataError as error:
            errors.append(error)
            absent = isinstance(error, MissingFileError) and not run.splits
            code, level = ("absent_split", "note") if absent else ("annotations", "problem")
            findings.append(Finding(code, level, f"{name}: {error}"))
    if not found:
        raise errors[0]
    return found, findings


def _file(place: Place) -> str:
    """File, or part of one, without the box."""
    return replace(place, box=None).text()


def _check(run: DoctorRun, places: Mapping[str, Place]) -> dict[str, ImageCheck]:
    """Checks by image id; a file that several crops share is read once."""
    files = list(dict.fromkeys(_file(place) for place in places.values()))
    step = Step(check_images, {"limits": run.limits.to_dict()}, tasks=run.tasks)
    parts = Parts("check images", "images", Cut({"place": files}, run.shard_rows), [step], row_bytes=2048)
    ray = run.ray.model_copy(update={"enabled": run.ray.enabled and len(files) >= run.ray_from})
    by_file: dict[str, ImageCheck] = {}
    for columns in each_part(parts, ray):
        values = zip(*(columns[name].tolist() for name in ("place", *_NAMES)), strict=True)
        by_file |= {file: ImageCheck(*row) for file, *row in values}
    return {image: check_box(by_file[_file(place)], place.box) for image, place in places.items()}


def _digest(checks: Mapping[str, ImageCheck] | None) -> str:
    if checks is None:
        return ""
    return stable_id("images", *(part for image in sorted(checks) for part in (image, checks[image].digest)))


def _publish(
    run: DoctorRun, report: DoctorReport, places: Mapping[str, Place], checks: Mapping[str, ImageCheck] | None
) -> None:
    stage = open_stage(run, KIND, {"data": stable_id(report.digest, report.to_dict()), "folder": ""})
    if stage.finished:
        return
    text = json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n"
    storage.write_bytes(storage.join(stage.work_uri, REPORT), text.encode())
    rows = [
        {"image_id": image, "place": places[image].text(), **asdict(check)} for image, check in (checks or {}).items()
    ]
    if rows:
        write_table(storage.join(stage.work_uri, TABLE), pa.Table.from_pylist(rows))
    problems = sum(finding.level == "problem" for finding in report.findings)
    stage.publish({**report.counts, "problems": problems}, extra={"digest_of_images": report.digest})
