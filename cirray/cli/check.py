"""`cirray check`."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="check",
    group="texts",
    help="keep the generated triplets whose target a base retriever finds by the text",
    config="cirray.pipelines.texts.config:CheckRun",
    run="cirray.pipelines.texts.check:run_check",
    example="cirray check triplets=DIR checkpoint=DIR top_k=20 out=DIR",
)
