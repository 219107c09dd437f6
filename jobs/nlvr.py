"""Convert the NLVR dev scenes to the open folder layout: `python jobs/nlvr.py --root NLVR_REPOSITORY --out FOLDER`."""

import argparse
import sys
from pathlib import Path

from cirray.core.errors import CirrayError
from cirray.data.nlvr import write_nlvr


def main() -> int:
    """Convert, print the counts; 2 when the input cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder with dev/dev.json and dev/images")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of the split and the texts")
    args = parser.parse_args()
    try:
        summary = write_nlvr(args.root, args.out, args.seed)
    except CirrayError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: " + ", ".join(f"{count} {name}" for name, count in summary["counts"].items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
