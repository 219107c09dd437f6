"""The leak guard in the stages: mining, generating and training refuse a benchmark's val and test images."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cirray.core.errors import ArtifactError, DataError
from cirray.data.config import CirrConfig, DataConfig, FashionIQConfig, FolderConfig
from cirray.mining.config import MiningConfig
from cirray.pipelines.cluster.config import RayConfig
from cirray.pipelines.data.datasets import check_leaks, open_dataset
from cirray.pipelines.texts.config import GenerateRun, GeneratorRun, MineRun
from cirray.pipelines.texts.generate import run_generate
from cirray.pipelines.texts.generator import run_generator
from cirray.pipelines.texts.mine import run_mine
from cirray.pipelines.training.config import TrainRun
from cirray.pipelines.training.train import run_train
from cirray.triplets.pairs import read_pairs
from cirray.triplets.schema import image_ids
from cirray.types import images_of

FIXTURES = Path(__file__).parents[2] / "fixtures"
MADE = SimpleNamespace(**runpy.run_path(str(FIXTURES / "benchmarks.py")))
TINY = SimpleNamespace(**runpy.run_path(str(FIXTURES / "tiny_pipeline.py")))
TRAINING = runpy.run_path(str(FIXTURES / "tiny_training.py"))
PARTS = ("labelled", "pool", "gallery")
published = pytest.mark.skipif(not (MADE.SHARED / "cirr").is_dir(), reason="the published files are not here")


def features(uri, ids):
    rng = np.random.default_rng(0)
    return TINY.write_features(uri, {image: rng.normal(size=(1, 4)).astype(np.float16) for image in ids}, rows=4096)


def mine(data, place, policy="uniform", **fields):
    dataset = open_dataset(data)
    if not (place / "features").exists():
        features(place / "features", dataset.images.ids)
    settings = {"features": (str(place / "features"),), "parts": PARTS, "exclude_parts": (), "out": str(place / policy)}
    mining = MiningConfig(policy=policy, count=3000)
    run_mine(MineRun(**{**settings, "data": data, "mining": mining, **fields}))
    return set(image_ids(read_pairs(place / policy)).to_pylist())


@pytest.mark.parametrize("policy", ["uniform", "neighbour_band", "existing"])
def test_a_benchmarks_own_val_and_test_images_are_never_mined(tmp_path, policy):
    data = DataConfig(format="cirr", cirr=CirrConfig(root=str(MADE.write_cirr(tmp_path / "cirr"))))
    names = set(MADE.cirr_names("val")) | set(MADE.cirr_names("test1"))
    assert set(open_dataset(data).images.ids) & names
    found = mine(data, tmp_path, policy)
    assert found and found <= set(MADE.cirr_names("train"))


@published
@pytest.mark.parametrize(
    "data",
    [
        DataConfig(format="cirr", cirr=CirrConfig(root=str(MADE.SHARED), split="test1")),
        DataConfig(format="fashioniq", fashioniq=FashionIQConfig(root=str(MADE.SHARED / "fashioniq"))),
    ],
    ids=lambda data: data.format,
)
def test_the_published_pair_pool_never_holds_val_or_test_images(tmp_path, data):
    dataset = open_dataset(data)
    if data.format == "fashioniq":
        assert set(dataset.pool_ids) & dataset.guarded
    assert len(dataset.guarded) > 4000
    found = mine(data, tmp_path)
    assert len(found) > 1000 and not found & dataset.guarded


@pytest.fixture
def guard(tmp_path):
    """A benchmark whose images are img-0003 and img-0007."""
    for number in (3, 7):
        MADE.put_image(tmp_path / "held" / f"img-{number:04d}.png")
    return DataConfig(folder=FolderConfig(root=str(tmp_path / "held")))


def test_a_pool_that_touches_a_guarded_benchmark_is_refused_before_mining(tmp_path, guard):
    data = DataConfig(folder=FolderConfig(root=TINY.write_images(tmp_path / "own", 9)))
    fields = {"guard": (guard,), "parts": ("pool",)}
    with pytest.raises(DataError, match="The pair pool holds 2 val or test images of held: img-0003, img-0007"):
        mine(data, tmp_path, **fields)
    assert not (tmp_path / "uniform.partial").exists()
    (tmp_path / "ids.txt").write_text("img-0003\nimg-0007\n")
    assert len(mine(data, tmp_path, **fields, exclude_ids=str(tmp_path / "ids.txt"))) == 7


def test_an_override_is_recorded_and_makes_another_artifact(tmp_path, guard):
    from cirray.core.artifacts import read_manifest

    data = DataConfig(folder=FolderConfig(root=TINY.write_images(tmp_path / "own", 9)))
    mine(data, tmp_path)
    assert "guard" not in read_manifest(tmp_path / "uniform").extra
    with pytest.raises(ArtifactError, match="different run"):
        mine(data, tmp_path, guard=(guard,), allow_leaks=True)
    mine(data, tmp_path, guard=(guard,), allow_leaks=True, out=str(tmp_path / "b"), policy="uniform")
    record = read_manifest(tmp_path / "b").extra["guard"]
    assert record == {"guarded": {"held": 2}, "leaks": {"held": ["img-0003", "img-0007"]}, "allowed": True}


def test_pairs_that_touch_a_guarded_benchmark_get_no_texts(tmp_path, guard):
    TINY.write_features(tmp_path / "features", TINY.random_vectors(9))
    TINY.write_pairs_artifact(tmp_path / "pairs", TINY.chain(8))
    TINY.write_generator(tmp_path / "generator")
    run = GenerateRun(
        pairs=str(tmp_path / "pairs"), features=(str(tmp_path / "features"),),
        generator=TINY.written(tmp_path / "generator"), out=str(tmp_path / "out"),
        ray=RayConfig(enabled=False), guard=(guard,),
    )  # fmt: skip
    with pytest.raises(DataError, match="pairs' holds 2 val or test images of held"):
        run_generate(run, TINY.load_knobs)
    manifest = run_generate(run.model_copy(update={"allow_leaks": True}), TINY.load_knobs)
    assert manifest.extra["guard"]["allowed"] and manifest.counts["triplets"] == 16


def test_training_on_a_guarded_image_is_refused_and_on_others_recorded(tmp_path):
    from cirray.core.config import validate

    fields = TRAINING["make"](tmp_path / "t")
    run = validate(TrainRun, {**fields, "out": str(tmp_path / "c")})
    used = sorted(images_of(open_dataset(run.data).split("train")))
    MADE.put_image(tmp_path / "held" / f"{used[0]}.png")
    MADE.put_image(tmp_path / "free" / "elsewhere.png")
    held, free = (DataConfig(folder=FolderConfig(root=str(tmp_path / name))) for name in ("held", "free"))
    with pytest.raises(DataError, match=f"The training data holds 1 val or test images of held: {used[0]}"):
        run_train(run.model_copy(update={"guard": (held,)}))
    with pytest.raises(DataError, match="The generator's training data holds 1 val or test images of held"):
        run_generator(
            GeneratorRun(
                data=run.data, towers=run.towers, features=run.features, guard=(held,), out=str(tmp_path / "g")
            )
        )
    manifest = run_train(run.model_copy(update={"guard": (free,)}))
    assert manifest.extra["guard"] == {"guarded": {"free": 1}, "leaks": {}, "allowed": False}


def test_without_a_guard_nothing_is_read_or_recorded():
    assert check_leaks((), iter(()), False, "x") == {}
