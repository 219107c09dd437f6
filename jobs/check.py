"""`cirray check` as a Ray job: `python jobs/check.py [CONFIG.yaml] [path.to.field=value ...]`."""

import sys
from pathlib import Path

from cirray.cli.main import job

CONFIG = Path(__file__).parent / "configs" / "shapes" / "check.yaml"

if __name__ == "__main__":
    sys.exit(job("check", str(CONFIG), needs=("synthetic", "labelled_equal")))
