"""`cirray quickstart`."""

from typing import Any

from cirray.cli.verb import Verb


def _show(result: Any) -> str:
    from cirray.pipelines.study.story_table import place_lines, render_story

    return render_story([result], bars=False) + "\n\n" + place_lines(result)


VERB = Verb(
    name="quickstart",
    group="tools",
    help="run the whole story on the embedded world and print one results table",
    config="cirray.pipelines.study.config:StoryRun",
    run="cirray.pipelines.study.story:run_story",
    example="cirray quickstart root=~/cirray/quickstart seed=0",
    show=_show,
)
