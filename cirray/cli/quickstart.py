"""`cirray quickstart`."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="quickstart",
    help="run the whole story on the embedded world and print one results table",
    config="cirray.pipelines.config:StoryRun",
    run="cirray.pipelines.story:run_story",
    example="cirray quickstart root=~/cirray/quickstart seed=0",
)
