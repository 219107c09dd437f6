"""`cirray embed` as a Ray job: `python jobs/embed.py [CONFIG.yaml] [path.to.field=value ...]`."""

import sys
from pathlib import Path

from cirray.cli.main import job

CONFIG = Path(__file__).parent / "configs" / "shapes" / "embed.yaml"

if __name__ == "__main__":
    sys.exit(job("embed", str(CONFIG), needs=("world", "towers")))
