"""`cirray browse`."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="browse",
    group="evaluation",
    help="write a page with every query of a saved evaluation, or of two side by side",
    config="cirray.pipelines.evaluation.config:BrowseRun",
    run="cirray.pipelines.evaluation.browse:run_browse",
    example="cirray browse run=report-before other=report-after out=compared.html",
    show=lambda browser: browser.text(),
    restarts=False,
)
