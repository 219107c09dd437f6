"""Every row of the table over seeds: `python jobs/reproduce_shapes.py [seeds=0,1,2] [labels=1000] [root=DIR]`."""

import sys

from cirray.cli.main import guarded
from cirray.core.config import load_config
from cirray.core.environ import limit_threads
from cirray.core.log import say
from cirray.core.storage import join
from cirray.pipelines.study.config import StoryRun


def main(arguments: list[str]) -> None:
    """Run one story per seed below `root/seed-N`, then print the table over all of them with the bars."""
    limit_threads()
    from cirray.pipelines.study.story import GENERATORS, run_story
    from cirray.pipelines.study.story_table import render_story

    seeds = [item for item in arguments if item.startswith("seeds=")] or ["seeds=0,1,2"]
    rest = [item for item in arguments if not item.startswith("seeds=")]
    base = load_config(StoryRun, {"root": "~/cirray/reproduce", "rows": [], "generators": [*GENERATORS]}, rest)
    results = []
    for seed in seeds[-1].removeprefix("seeds=").split(","):
        run = base.model_copy(update={"seed": int(seed), "root": join(base.root, f"seed-{seed}")})
        results.append(run_story(run))
        say(render_story(results))
        say()


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
