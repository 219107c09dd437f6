"""`cirray train-generator` as a Ray job: `python jobs/train_generator.py [CONFIG.yaml] [path.to.field=value ...]`."""

import sys

from cirray.cli.main import job

if __name__ == "__main__":
    sys.exit(job("train-generator"))
