"""`cirray generate` as a Ray job: `python jobs/generate.py [CONFIG.yaml] [path.to.field=value ...]`."""

import sys
from pathlib import Path

from cirray.cli.main import job

CONFIG = Path(__file__).parent / "configs" / "shapes" / "generate.yaml"

if __name__ == "__main__":
    sys.exit(job("generate", str(CONFIG), needs=("generator", "pairs")))
