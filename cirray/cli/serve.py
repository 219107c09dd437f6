"""`cirray serve`."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="serve",
    group="search",
    help="serve a retriever over HTTP with its search page (Ray Serve)",
    config="cirray.serving.config:ServeRun",
    run="cirray.serving.launch:run_serve",
    example="cirray serve --port 8000",
    takes_file="file",
    switches={"--fast": "fast=true", "--open": "open=true", "--writes": "writes=true"},
    show=lambda _: "",
    restarts=False,
)
