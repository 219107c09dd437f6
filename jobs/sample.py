"""`cirray sample` as a Ray job: `python jobs/sample.py [CONFIG.yaml] [path.to.field=value ...]`."""

import sys

from cirray.cli.main import job

if __name__ == "__main__":
    sys.exit(job("sample"))
