"""`cirray templates` as a Ray job: `python jobs/templates.py [CONFIG.yaml] [path.to.field=value ...]`."""

import sys
from pathlib import Path

from cirray.cli.main import job

CONFIG = Path(__file__).parent / "configs" / "shapes" / "templates.yaml"

if __name__ == "__main__":
    sys.exit(job("templates", str(CONFIG), needs=("features", "generator")))
