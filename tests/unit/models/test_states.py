"""Reference states kept by image, and refused where they are made for one text."""

import pytest
import torch

from cirray.core.errors import ConfigError
from cirray.models.states import ReferenceStates


def test_a_state_that_depends_on_the_text_is_not_kept_by_image(make):
    retriever = make()
    ReferenceStates(retriever)
    retriever.state_depends_on_text = True
    with pytest.raises(ConfigError, match="depend on the text, so they cannot be kept by image"):
        ReferenceStates(retriever)


def test_an_image_is_encoded_once(make, patches, monkeypatch):
    retriever, asked = make(), []
    original = retriever.encode_reference
    monkeypatch.setattr(retriever, "encode_reference", lambda batch: asked.append(len(batch)) or original(batch))
    states = ReferenceStates(retriever)
    twice = patches[[0, 1, 0]]
    assert torch.equal(states.get(["a", "b", "a"], twice), original(twice)) and asked == [2]
    assert torch.equal(states.get(["b", "c"], patches[1:]), original(patches[1:])) and asked == [2, 1]
