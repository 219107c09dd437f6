"""`python -m cirray VERB ...`, and the command `cirray`."""

import signal
import sys


def main() -> int:
    """Ctrl-C while the command line is imported ends the process without a traceback; then as `cirray.cli.main`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from cirray.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
