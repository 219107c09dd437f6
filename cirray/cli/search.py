"""`cirray search`."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="search",
    group="search",
    help="answer one composed query and write a page with the pictures",
    config="cirray.pipelines.search.config:SearchRun",
    run="cirray.pipelines.search.search:run_search",
    example='cirray search --id gal-00020-0 --text "in the middle left add a large cyan diamond"',
    show=lambda answer: answer.text(),
    restarts=False,
)
