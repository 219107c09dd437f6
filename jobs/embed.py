"""`cirray embed` as a Ray job: `python jobs/embed.py [CONFIG.yaml] [path.to.field=value ...]`."""

import sys
from pathlib import Path

from cirray.cli.main import job

if __name__ == "__main__":
    sys.exit(job("embed", str(Path(__file__).parent / "configs" / "embed-shapes-small-cpu.yaml")))
