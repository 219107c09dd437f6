"""Fields say what they are."""

import pytest
from pydantic import Field

from cirray.core.config import Config
from cirray.core.fields import Effort, Place, Role, role_of


class Inner(Config):
    size: int = 1


class Run(Config):
    steps: int = 3
    out: Place = "@out"
    features: tuple[Place, ...] = ()
    rows: dict[str, Place] = {}
    other: Place | None = None
    workers: Effort[int] = Field(2, ge=1)
    pool: Effort[Inner] = Inner()
    extra: Effort[Inner | None] = None


@pytest.mark.parametrize(
    "name, role",
    [
        ("steps", Role.IDENTITY), ("out", Role.PLACE), ("features", Role.PLACE), ("rows", Role.PLACE),
        ("other", Role.PLACE), ("workers", Role.EFFORT), ("pool", Role.EFFORT), ("extra", Role.EFFORT),
    ],
)  # fmt: skip
def test_a_field_has_the_role_that_its_annotation_declares(name, role):
    assert role_of(Run.model_fields[name]) is role


def test_a_declared_field_is_still_validated():
    assert Run(workers=4).workers == 4
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        Run(workers=0)
