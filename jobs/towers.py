"""`cirray towers` as a Ray job: `python jobs/towers.py [CONFIG.yaml] [path.to.field=value ...]`."""

import sys
from pathlib import Path

from cirray.cli.main import job

CONFIG = Path(__file__).parent / "configs" / "shapes" / "towers.yaml"

if __name__ == "__main__":
    sys.exit(job("towers", str(CONFIG)))
