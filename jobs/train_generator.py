"""`cirray train-generator` as a Ray job: `python jobs/train_generator.py [CONFIG.yaml] [path.to.field=value ...]`."""

import sys
from pathlib import Path

from cirray.cli.main import job

CONFIG = Path(__file__).parent / "configs" / "shapes" / "train-generator.yaml"

if __name__ == "__main__":
    sys.exit(job("train-generator", str(CONFIG), needs=("features",)))
