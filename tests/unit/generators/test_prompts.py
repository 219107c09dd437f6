import pytest

from cirray.core.errors import ConfigError
from cirray.generators.prompts import all_prompts, prompt


def test_a_prompt_is_found_by_its_version_and_names_no_roles():
    text = prompt("change/1")
    assert text in all_prompts()
    assert not {"reference", "target", "first", "second"} & set(text.split())


def test_an_unknown_version_answers_with_the_known_ones():
    with pytest.raises(ConfigError, match="change/1"):
        prompt("change/99")
