"""Embedding without a cluster: each image once, bad ones with a reason, resumed from finished shards."""

import io
import os
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from made_artifacts import stage_of
from PIL import Image

from cirray.core.errors import ArtifactError, DataError
from cirray.data.config import CirrConfig, DataConfig, FolderConfig
from cirray.features.shards import read_rejected
from cirray.features.store import FeatureStore
from cirray.pipelines.cluster.config import RayConfig
from cirray.pipelines.data.datasets import list_images
from cirray.pipelines.features import actors
from cirray.pipelines.features.actors import EncodeImages, decode_images
from cirray.pipelines.features.config import EmbedRun
from cirray.pipelines.features.embed import run_embed, tower_facts

TINY = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "tiny_pipeline.py")))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("embed")
    TINY.write_images(root / "images", 20, broken=(3, 11))
    TINY.write_tower(root / "tower")
    return root


@pytest.fixture
def opened(monkeypatch):
    seen = []
    real = actors.open_image
    monkeypatch.setattr(actors, "open_image", lambda data, caps, name, box: seen.append(name) or real(data, caps, name))
    return seen


def run_of(made, out, **fields):
    settings = {
        "data": DataConfig(folder=FolderConfig(root=str(made / "images"))), "tower": str(made / "tower"),
        "out": str(out), "shard_rows": 6, "batch": 4, "ray": RayConfig(enabled=False),
    }  # fmt: skip
    return EmbedRun(**{**settings, **fields})


def killed_in_the_third_batch(run, monkeypatch):
    """Start a run that ends as its third batch of pictures is encoded."""
    real, calls = EncodeImages.__call__, []

    def dying(self, columns):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return real(self, columns)

    with monkeypatch.context() as patched:
        patched.setattr(EncodeImages, "__call__", dying)
        with pytest.raises(KeyboardInterrupt):
            run_embed(run)


def test_every_image_is_decoded_once_and_bad_ones_are_rejected_with_a_reason(made, tmp_path, opened):
    manifest = run_embed(run_of(made, tmp_path / "f"))
    assert manifest.counts == {"images": 18, "rejected": 2}
    assert len(opened) == 20 and len(set(opened)) == 20
    store = FeatureStore.open(tmp_path / "f")
    assert len(store) == 18 and "img-0003" not in store and store.shape == (5, 8)
    rejected = [row for rows in read_rejected(str(tmp_path / "f")).values() for row in rows]
    assert [image for image, _ in rejected] == ["img-0003", "img-0011"]
    assert all("img-00" in reason for _, reason in rejected)
    facts = tower_facts(str(made / "tower"))
    assert (store.info.encoder_digest, store.info.transform_digest) == (facts.digest, facts.transform_digest)


def test_features_are_those_of_the_tower_called_directly(made, tmp_path):
    import torch
    from PIL import Image

    from cirray.models.towers.hf_blip2 import load_vision_tower
    from cirray.transforms import build_transform

    run_embed(run_of(made, tmp_path / "f"))
    tower = load_vision_tower(made / "tower")
    pixels = build_transform(tower.transform)(Image.open(made / "images" / "img-0007.png"))
    direct = tower(torch.from_numpy(pixels.copy())[None])[0].numpy()
    stored = FeatureStore.open(tmp_path / "f").get(["img-0007", "img-0008"]).astype(np.float32)
    assert stored[0] == pytest.approx(direct, abs=2e-3)
    assert np.abs(stored[1] - direct).max() > 0.05


def test_a_killed_run_goes_on_and_only_missing_shards_are_made(made, tmp_path, opened, monkeypatch):
    whole = run_embed(run_of(made, tmp_path / "whole"))
    killed_in_the_third_batch(run_of(made, tmp_path / "f"), monkeypatch)
    assert not (tmp_path / "f").exists()
    opened.clear()
    assert run_embed(run_of(made, tmp_path / "f")).digest == whole.digest
    assert len(opened) == 8
    opened.clear()
    assert run_embed(run_of(made, tmp_path / "f")).digest == whole.digest and opened == []


def test_images_that_changed_make_it_another_run(made, tmp_path):
    shutil.copytree(made / "images", tmp_path / "images")
    data = DataConfig(folder=FolderConfig(root=str(tmp_path / "images")))
    run_embed(run_of(made, tmp_path / "f", data=data))
    shutil.copy(tmp_path / "images" / "img-0001.png", tmp_path / "images" / "new.png")
    with pytest.raises(ArtifactError, match="different run .inputs.data"):
        run_embed(run_of(made, tmp_path / "f", data=data))


def test_when_no_image_can_be_used_the_run_fails_and_leaves_nothing(made, tmp_path):
    TINY.write_images(tmp_path / "images", 3, broken=(0, 1, 2))
    data = DataConfig(folder=FolderConfig(root=str(tmp_path / "images")))
    with pytest.raises(DataError, match="None of 3 images could be used, e.g. 'img-0000'"):
        run_embed(run_of(made, tmp_path / "f", data=data))
    assert not (tmp_path / "f").exists() and not (tmp_path / "f.partial").exists()


def test_a_missing_tower_is_named(made, tmp_path):
    with pytest.raises(ArtifactError, match="There is no vision tower at .*no-such-tower'. Run `cirray towers` first"):
        run_embed(run_of(made, tmp_path / "f", tower=str(tmp_path / "no-such-tower")))
    TINY.write_pairs_artifact(tmp_path / "pairs", TINY.chain(3))
    with pytest.raises(ArtifactError, match="pairs' holds no vision tower"):
        run_embed(run_of(made, tmp_path / "g", tower=str(tmp_path / "pairs")))
    stage = stage_of(str(tmp_path / "towers"), "towers")
    shutil.copytree(made / "tower", stage.local / "vision")
    (stage.local / "vision" / "config.json").unlink()
    stage.publish({})
    held = r"vision': the folder has no config.json \(it holds .*\)\. Give an image encoder"
    with pytest.raises(ArtifactError, match=f"No vision tower could be read from .*{held}"):
        run_embed(run_of(made, tmp_path / "h", tower=str(tmp_path / "towers")))


def test_decoding_is_a_plain_function_with_errors_as_values(made):
    images = list_images(DataConfig(folder=FolderConfig(root=str(made / "images"))), ("gallery",))
    columns = decode_images({"image_id": images.ids[:6], "place": images.places[:6]}, {"size": 16}, {})
    assert columns["pixels"].shape == (6, 16, 16, 3) and columns["pixels"].dtype == np.uint8
    assert [bool(error) for error in columns["error"]] == [False, False, False, True, False, False]
    assert columns["pixels"][3].max() == 0 < columns["pixels"][2].max()
    assert "place" not in columns


def test_limits_of_the_configuration_reach_the_decoder(made, tmp_path):
    run = run_of(made, tmp_path / "f", limits={"min_side": 100})
    with pytest.raises(DataError, match="both sides must be at least 100 pixels"):
        run_embed(run)


def test_a_benchmark_with_missing_images_is_embedded_and_they_are_rejected_with_a_reason(made, tmp_path):
    benchmarks = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "benchmarks.py")))
    root = benchmarks.write_cirr(tmp_path / "cirr")
    names = benchmarks.cirr_names("val")
    benchmarks.put_images(root / "dev" / f"{name}.png" for name in names[1:])
    data = DataConfig(format="cirr", cirr=CirrConfig(root=str(root)))
    manifest = run_embed(run_of(made, tmp_path / "f", data=data, parts=("gallery",)))
    assert manifest.counts == {"images": 5, "rejected": 1} and FeatureStore.open(tmp_path / "f").shape == (5, 8)
    assert manifest.extra["rejected"][0][0] == names[0] and "No such file" in manifest.extra["rejected"][0][1]


def replaced(path, data=None):
    """Other bytes, equally many, with the old dates: what `cp -p` of another picture may leave."""
    stat, old = path.stat(), path.read_bytes()
    pixels = np.random.default_rng(99).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    path.write_bytes((stream.getvalue() if data is None else data).ljust(len(old), b"\0"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_picture_that_was_replaced_is_embedded_again_when_the_run_goes_on(made, tmp_path, opened, monkeypatch):
    shutil.copytree(made / "images", tmp_path / "images")
    run = run_of(made, tmp_path / "f", data=DataConfig(folder=FolderConfig(root=str(tmp_path / "images"))))
    killed_in_the_third_batch(run, monkeypatch)
    replaced(tmp_path / "images" / "img-0001.png")
    replaced(tmp_path / "images" / "img-0003.png")
    opened.clear()
    manifest = run_embed(run)
    assert len(opened) == 14 and {"img-0000.png", "img-0001.png"} <= set(opened) and "img-0007.png" not in opened
    assert manifest.counts == {"images": 19, "rejected": 1}
    fresh = run_embed(run.model_copy(update={"out": str(tmp_path / "fresh")}))
    assert manifest.digest == fresh.digest


def test_finished_features_of_pictures_that_changed_since_are_not_taken_for_theirs(made, tmp_path):
    shutil.copytree(made / "images", tmp_path / "images")
    run = run_of(made, tmp_path / "f", data=DataConfig(folder=FolderConfig(root=str(tmp_path / "images"))))
    whole = run_embed(run)
    assert run_embed(run).digest == whole.digest
    replaced(tmp_path / "images" / "img-0005.png")
    with pytest.raises(ArtifactError, match="1 of 20 pictures have changed since .* e.g. 'img-0005'"):
        run_embed(run)


def test_names_that_are_not_utf8_and_links_to_nothing_are_no_obstacle(made, tmp_path):
    TINY.write_images(tmp_path / "images", 2)
    shutil.copy(tmp_path / "images" / "img-0001.png", os.path.join(os.fsencode(tmp_path / "images"), b"caf\xe9.png"))
    (tmp_path / "images" / "gone.jpg").symlink_to("nowhere")
    data = DataConfig(folder=FolderConfig(root=str(tmp_path / "images")))
    manifest = run_embed(run_of(made, tmp_path / "f", data=data))
    assert "caf%E9" in FeatureStore.open(tmp_path / "f")
    assert manifest.counts == {"images": 3, "rejected": 1}
    assert "'gone.jpg' is a link to 'nowhere'" in manifest.extra["rejected"][0][1]
