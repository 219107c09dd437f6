"""`cirray export triplets`."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="export triplets",
    group="tools",
    help="write triplets with their pictures as a data set for the hub, with a card",
    config="cirray.pipelines.texts.config:ExportTripletsRun",
    run="cirray.pipelines.texts.export:run_export_triplets",
    example="cirray export triplets triplets=@synthetic data.folder.root=my out=my-triplets",
)
