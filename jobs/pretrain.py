"""`cirray pretrain` as a Ray job: `python jobs/pretrain.py [CONFIG.yaml] [path.to.field=value ...]`."""

import sys
from pathlib import Path

from cirray.cli.main import job

if __name__ == "__main__":
    sys.exit(job("pretrain", str(Path(__file__).parent / "configs" / "pretrain-shapes-small-cpu.yaml")))
