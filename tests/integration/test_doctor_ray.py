"""The doctor through Ray Data's tasks finds what it finds in one process."""

import pytest
from PIL import Image

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


def test_ray_tasks_and_one_process_report_the_same(tmp_path):
    from cirray.pipelines.cluster.config import RayConfig
    from cirray.pipelines.data.config import DoctorRun
    from cirray.pipelines.data.doctor import run_doctor

    for number in range(60):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / f"{number:02d}.png")
    (tmp_path / "07.png").write_bytes(b"")
    (tmp_path / "31.png").write_bytes((tmp_path / "30.png").read_bytes())
    fields = {"folder": str(tmp_path), "dataset": "folder", "shard_rows": 16, "ray_from": 0}
    alone = run_doctor(DoctorRun(**fields, ray=RayConfig(enabled=False)))
    by_ray = run_doctor(DoctorRun(**fields, ray=RayConfig(object_store_memory=150_000_000)))
    assert by_ray == alone and by_ray.exit_status == 1 and by_ray.counts["images"] == 60
    assert {f.code: f.items for f in by_ray.findings} == {"empty": ("07",), "duplicate": ("30=31",)}
