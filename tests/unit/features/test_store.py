"""The feature store: what is asked for comes back in order, and nothing damaged or foreign is read."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cirray.core.errors import ArtifactError, DataError, IndexMismatchError
from cirray.features.shards import read_contents, read_rejected
from cirray.features.store import FeatureInfo, FeatureStore

TINY = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "tiny_pipeline.py")))


@pytest.fixture
def stored(tmp_path):
    vectors = TINY.random_vectors(50)
    return TINY.write_features(tmp_path / "features", vectors), vectors


def test_vectors_come_back_in_the_order_asked_for_across_shards(stored):
    uri, vectors = stored
    store = FeatureStore.open(uri)
    ids = [f"img-{n:04d}" for n in (49, 0, 17, 16, 15, 31, 0, 33)]
    found = store.get(ids)
    assert found.dtype == np.float16 and found.shape == (8, 3, 4)
    assert np.array_equal(found, np.stack([vectors[image] for image in ids]))
    assert not np.array_equal(found, np.stack([vectors[image] for image in sorted(ids)]))


def test_ids_keep_the_order_of_the_shards_and_blocks_cover_them_once(stored):
    uri, vectors = stored
    store = FeatureStore.open(uri)
    assert store.ids == tuple(vectors) and len(store) == 50 and store.shape == (3, 4)
    blocks = list(store.blocks(7))
    assert [image for ids, _ in blocks for image in ids] == list(vectors)
    assert np.array_equal(np.concatenate([block for _, block in blocks]), np.stack(list(vectors.values())))


def test_asking_for_nothing_gives_an_empty_array(stored):
    assert FeatureStore.open(stored[0]).get([]).shape == (0, 3, 4)


def test_missing_ids_are_named(stored):
    store = FeatureStore.open(stored[0])
    assert "img-0003" in store and "ghost" not in store
    with pytest.raises(DataError, match="'ghost', 'spirit'; the store holds 50 images"):
        store.get(["img-0003", "ghost", "spirit", "ghost"])
    with pytest.raises(DataError, match="'a', 'b', 'c' and 2 more"):
        store.get(list("abcde"))


def test_shards_are_memory_mapped(stored):
    assert all(isinstance(shard, np.memmap) for shard in FeatureStore.open(stored[0])._shards)


def test_a_flipped_byte_is_refused_naming_the_file(stored):
    uri, _ = stored
    path = Path(uri) / "shards" / "part-00001.npy"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=r"part-00001'?\.npy or its ids are damaged"):
        FeatureStore.open(uri)


@pytest.mark.parametrize("cut", [3, 90, 200])
def test_a_truncated_shard_is_refused_even_when_contents_are_not_checked(stored, cut):
    uri, _ = stored
    path = Path(uri) / "shards" / "part-00002.npy"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ArtifactError, match="part-00002.npy.* is damaged"):
        FeatureStore.open(uri, verified_bytes=0)


def test_a_missing_shard_and_damaged_ids_are_refused(stored):
    uri, _ = stored
    ids = Path(uri) / "shards" / "part-00003.ids.json"
    text = ids.read_text()
    ids.write_text(text[:-4])
    with pytest.raises(ArtifactError, match="part-00003.ids.json"):
        FeatureStore.open(uri)
    ids.write_text(text)
    (Path(uri) / "shards" / "part-00003.npy").unlink()
    with pytest.raises(ArtifactError, match="part-00003.*missing"):
        FeatureStore.open(uri)


def test_another_number_of_ids_than_rows_is_refused(stored):
    uri, _ = stored
    ids = Path(uri) / "shards" / "part-00000.ids.json"
    ids.write_text('["img-0000"]')
    with pytest.raises(ArtifactError, match="part-00000.npy.*float16"):
        FeatureStore.open(uri, verified_bytes=0)


def test_several_artifacts_open_as_one_store(stored, tmp_path):
    uri, vectors = stored
    more = TINY.random_vectors(9, seed=5, prefix="new")
    store = FeatureStore.open_many([uri, TINY.write_features(tmp_path / "more", more)])
    assert store.ids == (*vectors, *more)
    assert np.array_equal(store.get(["new-0003", "img-0002"]), np.stack([more["new-0003"], vectors["img-0002"]]))
    assert FeatureStore.open_many(uri).ids == tuple(vectors)


FURTHER = TINY.random_vectors(3, 2, prefix="last")


def test_an_image_in_two_artifacts_counts_once_when_its_features_agree(stored, tmp_path):
    uri, vectors = stored
    same = {name: vectors[name] for name in ("img-0001", "img-0040")} | TINY.random_vectors(2, 1, prefix="new")
    store = FeatureStore.open_many([uri, TINY.write_features(tmp_path / "same", same)])
    assert len(store) == 52
    last = FeatureStore.open_many([uri, str(tmp_path / "same"), TINY.write_features(tmp_path / "last", FURTHER)])
    for name, tokens in (vectors | same | FURTHER).items():
        assert np.array_equal(last.get([name])[0], tokens)
    assert all(isinstance(shard, np.memmap) for shard in last._shards), "none is read into memory"
    other = TINY.write_features(tmp_path / "other", {"img-0001": vectors["img-0002"]})
    with pytest.raises(DataError, match="'img-0001' is another image"):
        FeatureStore.open_many([uri, other])


@pytest.mark.parametrize("made", [{"encoder": "x"}, {"transform": "x"}])
def test_features_of_different_encoders_or_transforms_are_not_mixed(stored, tmp_path, made):
    other = TINY.write_features(tmp_path / "other", TINY.random_vectors(3, prefix="new"), **made)
    with pytest.raises(IndexMismatchError, match="cannot be mixed"):
        FeatureStore.open_many([stored[0], other])


def test_an_absent_artifact_is_named(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        FeatureStore.open(tmp_path / "nothing")


def large_store(images=24, shape=(1100, 512)):
    rng = np.random.default_rng(0)
    shards = [rng.random((images // 3, *shape)).astype(np.float16) for _ in range(3)]
    ids = [str(number) for number in range(images)]
    return FeatureStore(shards, ids, FeatureInfo("e", "t", shape)), np.concatenate(shards)


def test_large_rows_are_read_as_small_ones_are_in_any_order_and_more_than_once():
    store, rows = large_store()
    for seed in range(4):
        chosen = np.random.default_rng(seed).integers(0, len(rows), 20)
        assert np.array_equal(store.get([str(row) for row in chosen]), rows[chosen])


def test_memory_of_a_batch_is_used_again_once_nobody_holds_it_and_never_before():
    import torch

    store, rows = large_store()
    first = store.get([str(row) for row in range(20)])
    view, tensor = store.get([str(row) for row in range(20)])[3:5], torch.from_numpy(store.get(["1"] * 20))
    for seed in range(6):
        store.get([str(row) for row in np.random.default_rng(seed).integers(0, 24, 20)])
    assert np.array_equal(first, rows[:20]) and np.array_equal(view, rows[3:5])
    assert np.array_equal(tensor.numpy(), rows[[1] * 20])
    place = store.get(["2"] * 20).ctypes.data
    assert store.get(["4"] * 20).ctypes.data == place
    kept = store.get(["5"] * 20)
    assert store.get(["6"] * 20).ctypes.data != kept.ctypes.data and np.array_equal(kept, rows[[5] * 20])


def test_features_keep_their_names_whatever_the_order_they_are_written_and_read_in(tmp_path):
    """The released SPN code reads features by position in another order than it wrote them."""
    vectors = TINY.random_vectors(20)
    order = np.random.default_rng(3).permutation(20)
    shuffled = {list(vectors)[n]: vectors[list(vectors)[n]] for n in order}
    stores = [
        FeatureStore.open(TINY.write_features(tmp_path / name, given, rows=rows))
        for name, given, rows in (("one", vectors, 20), ("two", shuffled, 3))
    ]
    assert stores[0].ids != stores[1].ids
    for asked in (list(vectors), list(shuffled), sorted(vectors, reverse=True)):
        wanted = np.stack([vectors[name] for name in asked])
        assert all(np.array_equal(store.get(asked), wanted) for store in stores)


@pytest.mark.parametrize("folder", ["rejected", "contents"])
@pytest.mark.parametrize("content", [b"{", b"3", b"\xff\xfe", b'[{"image_id": 1}]', b"<html></html>"])
def test_damaged_lists_of_images_are_one_sentence_with_the_file_named(stored, folder, content):
    place = Path(stored[0]) / folder / "part-00000.json"
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{folder}/part-00000.json' is damaged.*Embed again"):
        (read_rejected if folder == "rejected" else read_contents)(str(stored[0]))


def test_a_shard_of_objects_is_refused_and_never_unpickled(stored):
    shard = Path(stored[0]) / "shards" / "part-00000.npy"
    np.save(shard, np.array([None] * 16, dtype=object), allow_pickle=True)
    with pytest.raises(ArtifactError, match="Feature shard .*part-00000.npy' is damaged"):
        FeatureStore.open(stored[0], verified_bytes=0).get(["img-0000"])
