"""Peak memory of a command and all processes it starts, shared pages counted once (PSS). Linux only.

    python jobs/benchmarks/bench_memory.py quickstart root=/tmp/story

Runs `cirray` with the given words and prints its output, then the peak, when it was, and the largest processes there.
"""

import subprocess
import sys
import time
from pathlib import Path

from machine import machine

EVERY_S = 1.0
SHOWN = 5


def main(words: list[str]) -> int:
    """Run, sample, print."""
    if not words:
        print(__doc__)
        return 2
    begin, peak, when, largest = time.monotonic(), 0, 0.0, list[tuple[int, str]]()
    command = subprocess.Popen([sys.executable, "-m", "cirray", *words])
    while command.poll() is None:
        found = [(pss(pid), name(pid)) for pid in family(command.pid)]
        if sum(size for size, _ in found) > peak:
            peak, when = sum(size for size, _ in found), time.monotonic() - begin
            largest = sorted(found, reverse=True)[:SHOWN]
        time.sleep(EVERY_S)
    print(f"\n{machine()}")
    total = time.monotonic() - begin
    print(f"peak memory {peak / 2**30:.2f} GB (PSS) after {when:.0f} of {total:.0f} s; largest then:")
    for size, words_of in largest:
        print(f"  {size / 2**30:6.2f} GB  {words_of[:90]}")
    return command.returncode


def family(root: int) -> list[int]:
    """A process and its descendants."""
    parents = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(place.parent.name)] = int(place.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
    found, size = {root}, 0
    while len(found) != size:
        size = len(found)
        found |= {pid for pid, parent in parents.items() if parent in found}
    return sorted(found)


def pss(pid: int) -> int:
    """Proportional set size in bytes, 0 for a process that is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def name(pid: int) -> str:
    """Its command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "(gone)"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
