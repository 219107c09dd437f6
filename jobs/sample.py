"""`cirray sample` as a Ray job: `python jobs/sample.py [CONFIG.yaml] [path.to.field=value ...]`."""

import sys
from pathlib import Path

from cirray.cli.main import job

CONFIG = Path(__file__).parent / "configs" / "shapes" / "sample.yaml"

if __name__ == "__main__":
    sys.exit(job("sample", str(CONFIG), needs=("checked",)))
