"""Methods and stacks in one table: `python jobs/study.py [CONFIG.yaml] [seeds=[0,1]] [rows=[...]] [curve=[...]]`."""

import sys
from pathlib import Path

from cirray.cli.main import job

CONFIG = Path(__file__).parent / "configs" / "shapes" / "study.yaml"

if __name__ == "__main__":
    sys.exit(job("study", str(CONFIG)))
