"""`cirray convert`."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="convert",
    group="tools",
    help="read checkpoint files of LAVIS, SPRC and MTST_PTHA, or write them again",
    config="cirray.pipelines.weights.config:ConvertRun",
    run="cirray.pipelines.weights.convert:run_convert",
    example="cirray convert source=tuned_recall_at1_step.pt to=checkpoint tokenizer=bert-base-uncased out=sprc",
)
