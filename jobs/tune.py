"""`cirray tune` as a Ray job: `python jobs/tune.py [CONFIG.yaml] [path.to.field=value ...]`."""

import sys
from pathlib import Path

from cirray.cli.main import job

CONFIG = Path(__file__).parent / "configs" / "shapes" / "tune.yaml"

if __name__ == "__main__":
    sys.exit(job("tune", str(CONFIG), needs=("pretrained", "reverse")))
