"""`cirray keys`."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="keys",
    group="search",
    help="add, revoke or list the keys of a service",
    config="cirray.serving.keys_config:KeysRun",
    run="cirray.serving.keys:run_keys",
    example="cirray keys keys.json --add shop --rate 20/second",
    show=str,
    positional="file",
    restarts=False,
)
