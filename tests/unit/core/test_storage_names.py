"""Paths that are not UTF-8: one sentence, where the file systems of Arrow know only a traceback."""

import os

import pytest

from cirray.core.contents import content_digest
from cirray.core.errors import ArtifactError
from cirray.core.storage import join, list_files, resolve
from cirray.data.places import Place


def test_paths_and_files_that_are_not_utf8_are_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"caf.udce9' holds bytes that are not UTF-8"):
        resolve(tmp_path / "caf\udce9")
    with open(os.path.join(os.fsencode(tmp_path), b"caf\xe9.tar"), "wb"):
        pass
    with pytest.raises(ArtifactError, match=r"caf.*xe9.tar' below .* is no UTF-8 name; rename that file"):
        list_files(tmp_path)


def test_a_question_mark_ends_a_uris_path_and_is_a_letter_of_a_local_one():
    assert join("s3://bucket/run?region=eu", "a", "b") == "s3://bucket/run/a/b?region=eu"
    assert join("/photos/who?", "a.png") == "/photos/who?/a.png"


def test_a_picture_has_one_name_wherever_its_file_lies():
    places = ("/run/img-4.png", "s3://bucket/run/img-4.png?endpoint_override=localhost:9000&scheme=http", "/run/img-4")
    assert [Place(place).name("img-4") for place in places] == ["img-4.png", "img-4.png", "img-4"]
    assert Place("/run/shard.tar", span=(0, 9)).name("img-4") == "img-4"


def test_a_settings_file_counts_by_what_it_says_behind_a_uris_query_too(monkeypatch):
    files = {"a": b'{"model_type": "clip", "transformers_version": "5"}', "b": b'{"model_type": "clip"}'}
    monkeypatch.setattr("cirray.core.contents.storage.read_bytes", lambda uri: files[uri.split("/")[2]])
    digests = [content_digest(f"s3://{name}/lm/config.json?region=eu&scheme=http") for name in files]
    assert digests[0] == digests[1]
