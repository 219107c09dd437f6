"""`cirray evaluate` as a Ray job: `python jobs/evaluate.py [CONFIG.yaml] [path.to.field=value ...]`."""

import sys
from pathlib import Path

from cirray.cli.main import job

CONFIG = Path(__file__).parent / "configs" / "shapes" / "evaluate.yaml"

if __name__ == "__main__":
    sys.exit(job("evaluate", str(CONFIG), needs=("checkpoint",)))
