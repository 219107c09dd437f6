"""`cirray quickstart`: the study in the package."""

from cirray.cli.study import show
from cirray.cli.verb import Verb

VERB = Verb(
    name="quickstart",
    group="tools",
    help="run the whole story on the embedded world and print one results table",
    config="cirray.pipelines.study.config:StudyRun",
    run="cirray.cli.study:run",
    example="cirray quickstart root=my/demo seeds=0",
    file="assets/quickstart.yaml",
    show=show,
)
