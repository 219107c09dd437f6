"""`cirray mine` as a Ray job: `python jobs/mine.py [CONFIG.yaml] [path.to.field=value ...]`."""

import sys
from pathlib import Path

from cirray.cli.main import job

CONFIG = Path(__file__).parent / "configs" / "shapes" / "mine.yaml"

if __name__ == "__main__":
    sys.exit(job("mine", str(CONFIG), needs=("features",)))
