"""Artifacts of an earlier version are recognised: fields that did not exist then count as their defaults."""

import json

import pytest

from cirray.core.artifacts import open_stage
from cirray.core.config import Config
from cirray.core.errors import ArtifactError, DataError
from cirray.core.upgrades import with_new_fields
from cirray.data.writing import publish_folder


class Inner(Config):
    width: int = 8
    places: tuple[str, ...] = ("left",)


class UpgradedRun(Config):
    inner: Inner = Inner()
    several: tuple[Inner, ...] = ()
    steps_now: int = 5
    free: dict[str, float] = {}


def old(**changes):
    """A resolved configuration as a version without `width` and `free` wrote it."""
    tree = UpgradedRun(**changes).to_dict()
    for section in (tree["inner"], *tree["several"]):
        del section["width"]
    del tree["free"]
    return tree


def test_fields_that_an_older_version_did_not_know_count_as_their_defaults():
    new = UpgradedRun(several=({},)).to_dict()
    assert with_new_fields(old(several=({},)), new) == new


@pytest.mark.parametrize(
    "changes", [{"inner": {"width": 9}}, {"several": ({"width": 9},)}, {"free": {"a": 1.0}}, {"steps_now": 6}]
)
def test_what_is_not_a_default_stays_different(changes):
    kept = {name: tuple({} for _ in value) for name, value in changes.items() if name == "several"}
    assert with_new_fields(old(**kept), UpgradedRun(**changes).to_dict()) != UpgradedRun(**changes).to_dict()


def test_names_of_a_free_mapping_are_never_filled_in():
    assert with_new_fields({"free": {}}, {"free": {"other": 8}}) == {"free": {}}


def test_a_finished_and_a_half_written_stage_of_an_older_version_go_on(tmp_path):
    open_stage(str(tmp_path / "done"), "thing", old()).publish({})
    open_stage(str(tmp_path / "half"), "thing", old())
    assert open_stage(str(tmp_path / "done"), "thing", UpgradedRun().to_dict()).finished is not None
    open_stage(str(tmp_path / "half"), "thing", UpgradedRun().to_dict()).publish({})
    for name in ("done", "half"):
        with pytest.raises(ArtifactError, match="different run"):
            open_stage(str(tmp_path / name), "thing", UpgradedRun(inner={"width": 9}).to_dict())


def test_a_data_set_of_an_older_version_is_left_alone(tmp_path):
    calls = []
    for config in (old(), UpgradedRun().to_dict()):
        publish_folder(tmp_path / "world", "toy", config, lambda folder: calls.append(folder) or {"images": 0})
    assert len(calls) == 1 and json.loads((tmp_path / "world" / "dataset.json").read_text())["config"] == old()
    with pytest.raises(DataError, match="another data set"):
        publish_folder(tmp_path / "world", "toy", UpgradedRun(steps_now=6).to_dict(), lambda folder: {})
