"""`cirray submit`."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="submit",
    group="evaluation",
    help="write the files of the CIRR or CIRCO test server, or --check one",
    config="cirray.evaluation.config:SubmitRun",
    run="cirray.pipelines.evaluation.submit:run_submit",
    example="cirray submit --check submission/cirr-test1-recall.json",
    show=lambda submission: submission.text(),
    restarts=False,
)
