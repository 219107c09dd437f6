"""`cirray generate`."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="generate",
    group="texts",
    help="write a text for every pair by a generator, as triplets (Ray Data)",
    config="cirray.pipelines.texts.config:GenerateRun",
    run="cirray.pipelines.texts.generate:run_generate",
    example="cirray generate shapes/generate",
)
