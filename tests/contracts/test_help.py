"""Help is for people: it fits a screen, shows what may be said, and forgets no verb and no field."""

import shlex
from pathlib import Path

import pytest

from cirray.cli.help import HEIGHT, WIDTH, common_fields, overview, verb_help
from cirray.cli.main import configured
from cirray.cli.tree import find, roots, shown, walk
from cirray.cli.verb import GROUPS, VERBS, split_verb, verb
from cirray.core.fields import Role
from cirray.data.presets import PRESETS
from cirray.data.readers import READERS
from cirray.models.fusion.config import HEADS
from cirray.models.text_processors import TEXT_PROCESSORS
from cirray.training.engine import ENGINES
from cirray.training.terms.config import OBJECTIVES
from cirray.training.zeroshot.config import MAPPINGS, UNTRAINED
from cirray.triplets.filters import FILTERS

ROOT = Path(__file__).resolve().parents[2]
NAMED = {
    "finetune data.format": READERS,
    "finetune data.preset": PRESETS,
    "finetune training.engine": ENGINES,
    "finetune training.objective": OBJECTIVES,
    "finetune encoder.settings.fusion.kind": HEADS,
    "finetune encoder.settings.text_processor": TEXT_PROCESSORS,
    "generate filters.names": FILTERS,
    "map training.objective.kind": [*MAPPINGS, UNTRAINED],
}


def nodes_of(name):
    return list(walk(roots(verb(name).usual())))


@pytest.mark.parametrize("name", VERBS)
def test_the_help_of_every_verb_fits_a_screen_and_a_half(name):
    lines = verb_help(verb(name)).splitlines()
    assert 9 < len(lines) <= HEIGHT == 60
    assert max(map(len, lines)) <= WIDTH <= 120


@pytest.mark.parametrize("name", VERBS)
def test_the_help_of_every_verb_says_what_it_does_how_to_call_it_and_what_it_opens(name):
    text = verb_help(verb(name))
    assert " ".join(text.split()).startswith(f"cirray {name}: {verb(name).help} {verb(name).example}")
    assert f"cirray {name}" in verb(name).example
    cls = verb(name).config_class()
    assert all(f"\n  {node.path} " in text for node in [*common_fields(cls), *roots(cls)])


@pytest.mark.parametrize("name", VERBS)
def test_the_example_of_every_verb_is_a_command_that_can_be_given(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(verb(name).example.removeprefix("source <(").removesuffix(")"))
    found, rest = split_verb(words[1:])
    assert (words[0], found) == ("cirray", name)
    configured(verb(name), rest)


@pytest.mark.parametrize("name", VERBS)
def test_everything_is_in_help_all_with_its_whole_default_and_no_line_is_long(name):
    lines = verb_help(verb(name), "all").splitlines()
    assert max(map(len, lines)) <= WIDTH
    text = " ".join(" ".join(lines).split())
    for node in nodes_of(name):
        assert node.is_section or f"{node.path} = {' '.join(shown(node.default).split())} {node.kind}" in text, (
            node.path
        )


@pytest.mark.parametrize("name", VERBS)
def test_every_section_of_every_verb_opens(name):
    for node in nodes_of(name):
        lines = verb_help(verb(name), node.path).splitlines()
        assert lines and max(map(len, lines)) <= WIDTH


@pytest.mark.parametrize("name", VERBS)
def test_every_field_that_people_change_says_what_it_means(name):
    for node in common_fields(verb(name).config_class()):
        assert node.meaning and node.kind not in ("value", "section"), node.path


def test_every_verb_stands_once_in_the_overview_below_the_heading_of_its_group():
    heading, found = "", {}
    headings = {f"{text}:": group for group, text in GROUPS.items()}
    for line in overview().splitlines():
        heading = headings.get(line, heading)
        word = line[2:].split("  ")[0] if line.startswith("  ") else ""
        if word in VERBS:
            assert word not in found
            found[word] = heading
    assert found == {name: verb(name).group for name in VERBS}
    assert set(found.values()) == set(GROUPS)
    assert max(map(len, overview().splitlines())) <= 120


def test_captions_templates_rewrites_and_samples_are_one_group():
    assert {verb(name).group for name in ("caption", "templates", "rewrite", "sample")} == {"texts"}


@pytest.mark.parametrize("field, registry", NAMED.items())
def test_the_names_that_help_shows_are_those_that_are_registered(field, registry):
    name, path = field.split()
    shown_ones = [node.choices for node in nodes_of(name) if node.path == path]
    assert sorted(registry) in [sorted(choices) for choices in shown_ones]


def test_fields_that_change_no_result_stand_apart_those_inside_such_a_section_too():
    text = verb_help(verb("finetune"))
    assert text.index("How the work is done") < text.index("  ray.num_workers") < text.index("Sections")
    assert find(verb("finetune").config_class(), "ray.num_workers").role is Role.EFFORT


def test_a_field_that_a_class_declares_anew_stays_common():
    generator = verb("train-generator").config_class()
    assert find(generator, "alignment_training.optimizer.lr").is_common
    assert not find(generator, "alignment_training.optimizer.eps").is_common
