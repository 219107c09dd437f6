"""`cirray oracle`: an upper bound of the embedded world."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="oracle",
    group="texts",
    help="write the embedded world's true texts for the pairs of generated triplets: an upper bound",
    config="cirray.pipelines.texts.config:OracleRun",
    run="cirray.pipelines.texts.oracle:run_oracle",
    example="cirray oracle triplets=@synthetic",
)
