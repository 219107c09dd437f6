"""`cirray doctor`."""

import json
from typing import Any

from cirray.cli.verb import Verb


def _show(report: Any) -> str:
    return json.dumps(report.to_dict(), indent=2, ensure_ascii=False) if report.as_json else report.text()


VERB = Verb(
    name="doctor",
    group="data",
    help="check a data set on disk: images, annotations, gallery sizes (exit 0 clean, 1 findings)",
    config="cirray.pipelines.data.config:DoctorRun",
    run="cirray.pipelines.data.doctor:run_doctor",
    example="cirray doctor ~/data/cirr --dataset cirr --json",
    show=_show,
    positional="folder",
    switches={"--json": "as_json=true"},
)
