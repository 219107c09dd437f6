"""`python -m cirray VERB ...`."""

import sys

from cirray.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
