"""`cirray mine` as a Ray job: `python jobs/mine.py [CONFIG.yaml] [path.to.field=value ...]`."""

import sys
from pathlib import Path

from cirray.cli.main import job

if __name__ == "__main__":
    sys.exit(job("mine", str(Path(__file__).parent / "configs" / "mine-shapes-small-cpu.yaml")))
