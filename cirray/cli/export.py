"""`cirray export`."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="export",
    group="tools",
    help="write a model as one folder with a card, for cirray.load()",
    config="cirray.pipelines.weights.config:ExportRun",
    run="cirray.pipelines.weights.export:run_export",
    example="cirray export model=@checkpoint out=my-retriever",
)
