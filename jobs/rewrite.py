"""`cirray rewrite` as a Ray job: `python jobs/rewrite.py CONFIG.yaml [path.to.field=value ...]`."""

import sys
from pathlib import Path

from cirray.cli.main import job

CONFIG = Path(__file__).parent / "configs" / "shapes" / "rewrite.yaml"

if __name__ == "__main__":
    sys.exit(job("rewrite", str(CONFIG), needs=("world",)))
