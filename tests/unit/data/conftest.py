import numpy as np
import pytest

from cirray.data.config import ShapesConfig
from cirray.data.shapes.world import write_world


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def small_config():
    return ShapesConfig(
        seed=3, labelled_families=12, heldout_families=4, pool_families=8, gallery_references=5, image_size=48
    )


@pytest.fixture(scope="session")
def world(small_config, tmp_path_factory):
    root = tmp_path_factory.mktemp("world") / "w"
    write_world(small_config, root)
    return root
