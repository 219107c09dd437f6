"""`cirray pretrain`."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="pretrain",
    group="training",
    help="pretrain the retriever on generated triplets (Ray Train, DeepSpeed)",
    config="cirray.pipelines.training.config:PretrainRun",
    run="cirray.pipelines.training.train:run_train",
    example="cirray pretrain shapes/pretrain training.optimizer.lr=5e-4",
)
