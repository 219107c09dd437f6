"""Methods and stacks in one table: `python jobs/study.py [CONFIG.yaml] [seeds=[0,1]] [rows=[...]] [curve=[...]]`."""

import sys

from cirray.cli.main import job

if __name__ == "__main__":
    sys.exit(job("study"))
