"""Reference states kept by image, and refused where they are made for one text."""

import pytest
import torch

from cirray.core.errors import ConfigError
from cirray.models.states import ReferenceStates


def test_a_state_that_depends_on_the_text_is_not_kept_by_image(make):
    retriever = make()
    ReferenceStates(retriever, 2)
    retriever.state_depends_on_text = True
    with pytest.raises(ConfigError, match="depend on the text, so they cannot be kept by image"):
        ReferenceStates(retriever, 2)


def test_an_image_is_encoded_once_while_it_is_among_the_latest(make, patches):
    retriever, asked = make(), []
    states = ReferenceStates(retriever, 2)

    def get(*keys):
        asked.append([])
        rows = patches[["abc".index(key) for key in keys]]
        return states.get(keys, lambda places: asked[-1].extend(places) or rows[list(places)]), rows

    for keys, fresh in ((("a", "b", "a"), [0, 1]), (("b", "a"), []), (("c",), [0]), (("a", "c"), []), (("b",), [0])):
        found, rows = get(*keys)
        assert torch.equal(found, retriever.encode_reference(rows)) and asked[-1] == fresh, keys
    found, rows = get("a", "b", "c")
    assert torch.equal(found, retriever.encode_reference(rows)) and len(states._kept) == 2
