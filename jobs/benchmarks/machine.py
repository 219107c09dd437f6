"""The line that says on what a benchmark's figures were measured."""

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path


def machine(*libraries: str) -> str:
    """Processor, cores, load, versions, date: `AMD EPYC, 2 cores, load 0.1; Python 3.12.4, torch 2.9.1; ...`."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    versions = ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in libraries)])
    processor, cores = names[0] if names else platform.machine(), len(os.sched_getaffinity(0))
    return f"{processor}, {cores} cores, load {os.getloadavg()[0]:.1f}; {versions}; {time.strftime('%Y-%m-%d')}"
