"""`cirray map` as a Ray job: `python jobs/map.py [CONFIG.yaml] [path.to.field=value ...]`."""

import sys
from pathlib import Path

from cirray.cli.main import job

CONFIG = Path(__file__).parent / "configs" / "shapes" / "map.yaml"

if __name__ == "__main__":
    sys.exit(job("map", str(CONFIG), needs=("world",)))
