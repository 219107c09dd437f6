"""`cirray rewrite`."""

from cirray.cli.verb import Verb, partial_status

VERB = Verb(
    name="rewrite",
    group="texts",
    help="rewrite the queries' texts into captions of their targets by a language model (Ray Data)",
    config="cirray.pipelines.rewrites.config:RewriteRun",
    run="cirray.pipelines.rewrites.rewrite:run_rewrite",
    example="cirray rewrite shapes/rewrite",
    status=partial_status,
)
