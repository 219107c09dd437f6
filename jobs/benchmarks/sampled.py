"""Where a process's time goes, by whose code it is in: a profile by py-spy, read by groups.

py-spy needs the right to look into the process (root, or its own child). Its samples are of threads that run Python, or
wait for a core: on a busy machine the event loop's share also has what it waits for one after it woke.
"""

import re
import subprocess
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

from cirray.core.errors import ServingError

RATE = 400
"""Samples a second."""
_WITHIN = {
    "model and index": re.compile(r"search_many \("),
    "our metrics": re.compile(r"/cirray/serving/metrics\.py"),
}
"""Everything below such a frame belongs to it."""
_OWNERS = {
    "gate": re.compile(r"/cirray/serving/gate\.py"),
    "our application": re.compile(r"/cirray/"),
    "FastAPI and Starlette": re.compile(r"/(fastapi|starlette|pydantic)/"),
    "Ray Serve": re.compile(r"/ray/"),
    "HTTP server": re.compile(r"/uvicorn/"),
}
"""Else the innermost of these frames decides."""
LOOP = "event loop and sockets"


def owner(stack: str) -> str:
    """The group of a stack, its frames from the outermost inwards, parted by semicolons."""
    for name, pattern in _WITHIN.items():
        if pattern.search(stack):
            return name
    for frame in reversed(stack.split(";")):
        for name, pattern in _OWNERS.items():
            if pattern.search(frame) and "default_worker.py" not in frame and "/ray/_private/" not in frame:
                return name
    return LOOP


class Sampler:
    """Samples a process from its making on, for some seconds."""

    def __init__(self, program: str, pid: int, seconds: float, kept: str = "") -> None:
        """Begin.

        Args:
            program: py-spy's.
            pid: of the process.
            seconds: how long.
            kept: file that keeps the stacks; empty: none.
        """
        self._folder = tempfile.TemporaryDirectory()
        self._file = Path(kept or Path(self._folder.name) / "stacks")
        command = [program, "record", "--pid", str(pid), "--duration", str(max(1, round(seconds))), "--rate", str(RATE)]
        command += ["--format", "raw", "--full-filenames", "--nonblocking", "--output", str(self._file)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def shares(self) -> dict[str, float]:
        """Wait for the end; the share of each group, the largest first.

        Raises:
            ServingError: py-spy could not look into the process.
        """
        said = self._process.communicate()[1]
        if not self._file.exists():
            raise ServingError(f"py-spy has no samples: {said.strip()[-300:]}")
        found: Counter[str] = Counter()
        for line in self._file.read_text().splitlines():
            stack, _, count = line.rpartition(" ")
            if count.isdigit():  # a name of a frame may hold a line break
                found[owner(stack)] += int(count)
        self._folder.cleanup()
        whole = max(1, found.total())
        return {name: count / whole for name, count in found.most_common()}


def thread_seconds(pid: int, ticks: int) -> dict[str, float]:
    """Processor seconds of each thread of a process."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            parts = (task / "stat").read_text().rpartition(")")[2].split()
            found[task.name] = (int(parts[11]) + int(parts[12])) / ticks
    return found
