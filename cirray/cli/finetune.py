"""`cirray finetune`."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="finetune",
    group="training",
    help="fine-tune the retriever on labelled triplets (Ray Train, DeepSpeed)",
    config="cirray.pipelines.training.config:FinetuneRun",
    run="cirray.pipelines.training.train:run_train",
    example="cirray finetune shapes/finetune",
)
