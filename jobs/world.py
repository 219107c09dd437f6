"""`cirray world` as a Ray job: `python jobs/world.py [CONFIG.yaml] [path.to.field=value ...]`."""

import sys

from cirray.cli.main import job

if __name__ == "__main__":
    sys.exit(job("world"))
