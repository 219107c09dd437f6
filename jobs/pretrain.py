"""`cirray pretrain` as a Ray job: `python jobs/pretrain.py [CONFIG.yaml] [path.to.field=value ...]`."""

import sys
from pathlib import Path

from cirray.cli.main import job

CONFIG = Path(__file__).parent / "configs" / "shapes" / "pretrain.yaml"

if __name__ == "__main__":
    sys.exit(job("pretrain", str(CONFIG), needs=("checked",)))
