"""`cirray --help` and `cirray VERB --help` as users see them: a change here needs a CHANGELOG line.

To accept one: `python tests/golden/test_command_line.py` writes the file anew.
"""

from pathlib import Path

from cirray.cli.help import overview, verb_help
from cirray.cli.verb import VERBS, verb

GOLDEN = Path(__file__).with_name("command_line.txt")


def interface():
    """The overview, then every verb's help."""
    rule = "\n" + "=" * 112 + "\n"
    return rule.join([overview(), *(verb_help(verb(name)) for name in VERBS)]) + "\n"


def test_the_command_line_is_the_recorded_one():
    recorded = GOLDEN.read_text()
    assert interface() == recorded


if __name__ == "__main__":
    GOLDEN.write_text(interface())
