"""The quickstart with every row over three seeds: `python jobs/reproduce_shapes.py [field=value]`."""

import sys

from cirray.cli.main import main
from cirray.core.environ import artifact_root

ROOT = [] if artifact_root() else ["root=~/cirray/reproduce"]
"""The quickstart's own root is for one seed; `root=` and CIRRAY_ROOT name another."""
STUDY = [*ROOT, "per_seed=true", "seeds=[0,1,2]", "rows=[]"]
GENERATORS = ["generator_lora", "generator_tuned", "generator_three_passes", "generator_three_passes_tuned"]

if __name__ == "__main__":
    sys.exit(main(["quickstart", *STUDY, f"generators=[{','.join(GENERATORS)}]", *sys.argv[1:]]))
