"""`cirray clip` as a Ray job: `python jobs/clip.py [CONFIG.yaml] [path.to.field=value ...]`."""

import sys
from pathlib import Path

from cirray.cli.main import job

CONFIG = Path(__file__).parent / "configs" / "shapes" / "clip.yaml"

if __name__ == "__main__":
    sys.exit(job("clip", str(CONFIG)))
