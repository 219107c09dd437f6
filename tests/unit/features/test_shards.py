"""Shards being written: whole or not at all, and equal bytes for equal content."""

import numpy as np
import pytest

from cirray.core.errors import ArtifactError
from cirray.features.shards import FeatureShardWriter, finished_parts, shard_digest


def patches(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 2, 3))


def test_a_shard_counts_as_finished_only_with_its_ids(tmp_path):
    writer = FeatureShardWriter(str(tmp_path))
    writer.write(0, ["a", "b"], patches(2))
    writer.write(3, ["c"], patches(1), rejected=[("d", "broken")])
    assert [*finished_parts(str(tmp_path))] == [(0, ["a", "b"], []), (3, ["c"], [("d", "broken")])]
    (tmp_path / "shards" / "part-00003.ids.json").unlink()
    assert [part for part, _, _ in finished_parts(str(tmp_path))] == [0]
    (tmp_path / "shards" / "part-00000.npy").unlink()
    assert [*finished_parts(str(tmp_path))] == []


def test_writing_again_gives_the_same_bytes_and_other_vectors_other_ones(tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        FeatureShardWriter(str(tmp_path / name)).write(0, ["a", "b"], patches(2, seed))
    digests = [shard_digest(str(tmp_path / name / "shards"), "part-00000") for name in ("one", "two", "three")]
    assert digests[0] == digests[1] != digests[2]


def test_a_shard_of_nothing_but_rejected_images_is_finished(tmp_path):
    FeatureShardWriter(str(tmp_path)).write(1, [], np.zeros((0, 2, 3)), rejected=[("a", "broken"), ("b", "empty")])
    assert [*finished_parts(str(tmp_path))] == [(1, [], [("a", "broken"), ("b", "empty")])]


def test_ids_and_rows_must_agree_and_vectors_be_finite(tmp_path):
    writer = FeatureShardWriter(str(tmp_path))
    with pytest.raises(ArtifactError, match="has 3 ids"):
        writer.write(0, ["a", "b", "c"], patches(2))
    infinite = patches(2)
    infinite[1, 0, 0] = 1e6
    with (
        np.errstate(over="ignore"),
        pytest.raises(ArtifactError, match="features of image 'b' are not finite"),
    ):
        writer.write(0, ["a", "b"], infinite)
    assert [*finished_parts(str(tmp_path))] == []
