"""Memory of the process that asks, as Linux counts it.

`getrusage` is no way to it: its peak begins at that of the process that started this one.
"""

from pathlib import Path


def own_kib(name: str = "VmHWM") -> int:
    """A figure of `/proc/self/status` in KiB: `VmHWM` (peak), `VmRSS`, `RssAnon` or `RssFile`."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
