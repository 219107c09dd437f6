"""Captions through Ray Data's actors are those of the same actors called in this process."""

import pytest

from cirray.core.config import validate
from cirray.data.config import ShapesConfig
from cirray.data.shapes.world import write_world
from cirray.pipelines.captions.caption import run_caption
from cirray.pipelines.captions.config import CaptionRun
from cirray.triplets.captions import caption_table, rejected_captions

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("w") / "world"
    sizes = {"labelled_families": 6, "heldout_families": 2, "pool_families": 0, "gallery_references": 0}
    write_world(ShapesConfig(**sizes), root)
    return {"folder": {"root": str(root)}}


def test_two_actors_write_what_one_process_writes(world, tmp_path):
    made = []
    for name, ray in (("here", {"enabled": False}), ("ray", {"num_cpus": 2})):
        tree = {
            "data": world, "parts": ["labelled"], "captioner": "existing", "part_rows": 7, "ray": ray,
            "pool": {"size": 2, "cpus": 0.25}, "out": str(tmp_path / name),
        }  # fmt: skip
        made.append((run_caption(validate(CaptionRun, tree)), str(tmp_path / name)))
    (one, here), (other, there) = made
    assert one.counts == other.counts == {"images": 40, "captions": 30, "rejected": 10} and one.digest == other.digest
    assert caption_table(here) == caption_table(there) and rejected_captions(here) == rejected_captions(there)
