import os

import pytest

from cirray.core import environ


@pytest.fixture
def clean(monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "DS_ACCELERATOR"):
        monkeypatch.setenv(name, "kept")
        monkeypatch.delenv(name)


@pytest.mark.parametrize(("devices", "expected"), [([], "cpu"), (["/dev/nvidia0"], None)])
def test_deepspeed_is_told_of_the_cpu_only_where_there_is_nothing_else(clean, monkeypatch, devices, expected):
    monkeypatch.setattr(environ, "_accelerators", lambda: devices)
    environ.limit_threads(3)
    assert os.environ["OMP_NUM_THREADS"] == "3" and os.environ.get("DS_ACCELERATOR") == expected


def test_what_the_user_set_stays(clean, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    environ.limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_a_driver_without_gpu_does_not_take_the_workers_gpus_away(clean, monkeypatch):
    monkeypatch.setattr(environ, "_accelerators", lambda: [])
    environ.limit_threads()
    assert "DS_ACCELERATOR" not in environ.worker_environment()
