"""`cirray index` as a Ray job: `python jobs/index.py [CONFIG.yaml] [path.to.field=value ...]`."""

import sys
from pathlib import Path

from cirray.cli.main import job

CONFIG = Path(__file__).parent / "configs" / "shapes" / "index.yaml"

if __name__ == "__main__":
    sys.exit(job("index", str(CONFIG), needs=("checkpoint",)))
