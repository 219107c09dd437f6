"""`cirray search`."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="search",
    help="answer one composed query and write a page with the pictures",
    config="cirray.runs:SearchRun",
    run="cirray.pipelines.search:run_search",
    example='cirray search --id gal-00000-0 --text "make the square blue"',
    show=lambda answer: answer.text(),
    restarts=False,
)
