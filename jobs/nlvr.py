"""Convert the NLVR dev scenes to the open folder layout: `python jobs/nlvr.py root=FOLDER out=FOLDER [seed=0]`."""

import sys
from pathlib import Path

from cirray.cli.main import guarded
from cirray.core.config import load_config
from cirray.core.log import say
from cirray.data.config import NlvrRun
from cirray.data.nlvr import write_nlvr


def convert() -> None:
    """Convert what the command line names and say what came out."""
    run = load_config(NlvrRun, None, sys.argv[1:])
    summary = write_nlvr(Path(run.root), Path(run.out), run.seed)
    say(f"{run.out}: " + ", ".join(f"{count} {name}" for name, count in summary["counts"].items()))


if __name__ == "__main__":
    sys.exit(guarded(convert))
