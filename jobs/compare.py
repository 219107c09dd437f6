"""Methods and stacks in one table: `python jobs/compare.py [CONFIG.yaml] [seeds=[0,1]] [rows=[...]] [curve=[...]]`."""

import sys
from pathlib import Path

from cirray.cli.main import job

CONFIG = Path(__file__).parent / "configs" / "compare-shapes-small-cpu.yaml"

if __name__ == "__main__":
    sys.exit(job("compare", str(CONFIG)))
