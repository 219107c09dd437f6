from cirray.cli.main import configured
from cirray.cli.verb import verb


def config(*words):
    return configured(verb("serve"), words).config


def test_a_serve_config_file_is_named_by_itself_or_by_its_flag():
    for words in (["a.yaml", "--fast"], ["--file", "a.yaml", "--fast"], ["--file=a.yaml", "fast=true"]):
        assert (config(*words).file, config(*words).fast) == ("a.yaml", True)


def test_other_flags_of_serve_keep_their_values():
    run = config("--index", "my/index", "--port", "9000", "--root", "my-run")
    assert (run.index, run.port, run.file, run.checkpoint) == ("my/index", 9000, "", "my-run/checkpoint")


def test_what_is_on_or_off_is_switched_on_by_its_flag_alone():
    run = config("--writes", "--open", "--port", "9000")
    assert (run.writes, run.open, run.fast, run.port) == (True, True, False, 9000)
