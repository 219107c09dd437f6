"""`cirray finetune` as a Ray job: `python jobs/finetune.py [CONFIG.yaml] [path.to.field=value ...]`."""

import sys
from pathlib import Path

from cirray.cli.main import job

CONFIG = Path(__file__).parent / "configs" / "shapes" / "finetune.yaml"

if __name__ == "__main__":
    sys.exit(job("finetune", str(CONFIG), needs=("pretrained", "reverse")))
