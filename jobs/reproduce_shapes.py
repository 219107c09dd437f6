"""The quickstart with every row over three seeds: `python jobs/reproduce_shapes.py [field=value]`."""

import sys

from cirray.cli.main import main

STUDY = ["root=~/cirray/reproduce", "per_seed=true", "seeds=[0,1,2]", "rows=[]"]
GENERATORS = ["generator_lora", "generator_tuned", "generator_three_passes", "generator_three_passes_tuned"]

if __name__ == "__main__":
    sys.exit(main(["quickstart", *STUDY, f"generators=[{','.join(GENERATORS)}]", *sys.argv[1:]]))
