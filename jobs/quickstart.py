"""The whole story on the embedded world, as `make demo` runs it: `python jobs/quickstart.py [field=value ...]`."""

import sys

from cirray.cli.main import job

if __name__ == "__main__":
    sys.exit(job("quickstart"))
