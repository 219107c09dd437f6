"""`cirray caption` as a Ray job: `python jobs/caption.py [CONFIG.yaml] [path.to.field=value ...]`."""

import sys
from pathlib import Path

from cirray.cli.main import job

CONFIG = Path(__file__).parent / "configs" / "shapes" / "caption.yaml"

if __name__ == "__main__":
    sys.exit(job("caption", str(CONFIG), needs=("features", "generator")))
