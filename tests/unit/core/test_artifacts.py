import json

import pytest

from cirray.core import storage
from cirray.core.artifacts import check_place, localize, open_stage, read_manifest
from cirray.core.contents import file_digest
from cirray.core.errors import ArtifactError
from cirray.core.unfinished import restarting, stage_function


def write(stage, name="data.txt", text="hello"):
    storage.write_bytes(storage.join(stage.work_uri, name), text.encode())


def test_an_artifact_is_invisible_until_it_is_published(tmp_path):
    out = str(tmp_path / "a")
    stage = open_stage(out, "thing", {"x": 1})
    write(stage)
    with pytest.raises(ArtifactError, match="half-written"):
        read_manifest(out)
    manifest = stage.publish({"rows": 1}, {"score": 0.5})
    assert read_manifest(out, "thing") == manifest
    assert (localize(out) / "data.txt").read_text() == "hello"


def test_a_finished_stage_is_recognised_and_a_changed_config_is_refused(tmp_path):
    out = str(tmp_path / "a")
    open_stage(out, "thing", {"x": {"y": 1}}).publish({})
    assert open_stage(out, "thing", {"x": {"y": 1}}).finished is not None
    with pytest.raises(ArtifactError, match=r"config\.x\.y: 1 there, 2 now"):
        open_stage(out, "thing", {"x": {"y": 2}})


def test_a_killed_stage_resumes_with_its_shards_and_refuses_another_config(tmp_path):
    out = str(tmp_path / "a")
    write(open_stage(out, "thing", {"x": 1}, kept=["shard-*"]), "shard-0")
    resumed = open_stage(out, "thing", {"x": 1}, kept=["shard-*"])
    assert "shard-0" in storage.list_files(resumed.work_uri)
    for kept in (["shard-*"], []):  # another kind of stage does not make the shards worthless
        with pytest.raises(ArtifactError, match=r"half-written by a different run .*x: 1 there, 2 now.*Add --restart"):
            open_stage(out, "thing", {"x": 2}, kept=kept)
    assert "shard-0" in storage.list_files(resumed.work_uri)


def test_half_written_work_that_nobody_would_go_on_from_stands_in_no_one_s_way(tmp_path):
    out = str(tmp_path / "a")
    write(open_stage(out, "thing", {"x": 1}, kept=["shard-*"]), "copied-input")
    other = open_stage(out, "thing", {"x": 2}, kept=["shard-*"])
    assert other.fresh and storage.list_files(other.work_uri) == ["stage.json"]


def test_a_damaged_marker_is_named_where_work_would_be_lost_and_replaced_where_none_would(tmp_path):
    stage = open_stage(str(tmp_path / "a"), "thing", {"x": 1}, kept=["shard-*"])
    (tmp_path / "a.partial" / "stage.json").write_text("{")
    assert open_stage(stage.uri, "thing", {"x": 1}, kept=["shard-*"]).fresh
    write(stage, "shard-0")
    (tmp_path / "a.partial" / "stage.json").write_text("[1]")
    with pytest.raises(ArtifactError, match="half-written .*description is damaged"):
        open_stage(stage.uri, "thing", {"x": 1}, kept=["shard-*"])


def test_restarting_throws_half_written_work_away_and_no_finished_artifact(tmp_path):
    half, whole = str(tmp_path / "half"), str(tmp_path / "whole")
    write(open_stage(half, "thing", {"x": 1}, kept=["*"]), "shard-0")
    open_stage(whole, "thing", {"x": 1}).publish({})
    with restarting():
        assert storage.list_files(open_stage(half, "thing", {"x": 2}, kept=["*"]).work_uri) == ["stage.json"]
        write(open_stage(half, "thing", {"x": 2}, kept=["*"]), "shard-1")
        assert open_stage(half, "thing", {"x": 2}, kept=["*"]).fresh
        assert open_stage(whole, "thing", {"x": 1}).finished is not None
        with pytest.raises(ArtifactError, match="was made by a different run"):
            open_stage(whole, "thing", {"x": 2})
    assert read_manifest(whole).kind == "thing"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("name, left", [("copied-input", False), ("shard-0", True)])
def test_a_stage_that_fails_leaves_only_what_the_next_start_goes_on_from(tmp_path, error, name, left):
    @stage_function
    def run(out):
        """A stage."""
        write(open_stage(out, "thing", {}, kept=["shard-*"]), name)
        raise error

    with pytest.raises(error):
        run(str(tmp_path / "a"))
    assert [item.name for item in tmp_path.iterdir()] == (["a.partial"] if left else [])
    assert run.__name__ == "run" and run.__doc__ == "A stage."


def test_a_place_with_a_slash_at_its_end_is_the_same_place(tmp_path):
    open_stage(f"{tmp_path}/a/", "thing", {}).publish({})
    assert [item.name for item in tmp_path.iterdir()] == ["a"] and read_manifest(tmp_path / "a").kind == "thing"


@pytest.mark.parametrize("field, value", [("counts", [1]), ("extra", None), ("kind", 3), ("schema_version", "1")])
def test_a_manifest_with_a_field_of_another_type_is_damaged_and_the_field_is_named(tmp_path, field, value):
    open_stage(str(tmp_path / "a"), "thing", {}).publish({})
    path = tmp_path / "a" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ArtifactError, match=f"manifest of .* is damaged: {field} holds a "):
        read_manifest(str(tmp_path / "a"))


def test_a_folder_that_is_no_artifact_is_not_overwritten(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "precious.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="no artifact"):
        open_stage(str(tmp_path / "a"), "thing", {})
    assert (tmp_path / "a" / "precious.txt").exists()


def test_the_wrong_kind_a_missing_one_and_a_damaged_manifest_are_named(tmp_path):
    out = str(tmp_path / "a")
    open_stage(out, "thing", {}).publish({})
    with pytest.raises(ArtifactError, match="'thing'; 'index' is needed"):
        read_manifest(out, "index")
    with pytest.raises(ArtifactError, match="does not exist"):
        read_manifest(str(tmp_path / "b"), "thing")
    (tmp_path / "a" / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="damaged"):
        read_manifest(out)


def test_a_file_or_a_folder_in_place_of_an_artifact_is_not_called_absent(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArtifactError, match=r"w.pt' is a file, no artifact. Run .*`cirray convert`"):
        read_manifest(tmp_path / "w.pt", "checkpoint")
    with pytest.raises(ArtifactError, match="folder' is no artifact .it holds no manifest.json"):
        read_manifest(tmp_path / "folder")


def test_a_newer_schema_is_refused(tmp_path):
    out = tmp_path / "a"
    open_stage(str(out), "thing", {}).publish({})
    fields = json.loads((out / "manifest.json").read_text()) | {"schema_version": 99}
    (out / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(ArtifactError, match="99"):
        read_manifest(str(out))


def test_the_digest_depends_on_content_and_name_only(tmp_path):
    digests = []
    for name, text in (("a", "x"), ("b", "x"), ("c", "y")):
        stage = open_stage(str(tmp_path / name), "thing", {})
        write(stage, text=text)
        digests.append(stage.publish({}).digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_large_file_is_digested_by_size_and_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("cirray.core.contents._WHOLE_FILE_BYTES", 10)
    path = tmp_path / "big"
    path.write_bytes(b"a" * 3 * 2**20)
    before = file_digest(path)
    path.write_bytes(b"b" + b"a" * (3 * 2**20 - 1))
    assert file_digest(path) != before


@pytest.mark.parametrize("uri", ["nosuch://bucket/x", "s3:///"])
def test_a_bad_uri_is_one_sentence(uri):
    with pytest.raises(ArtifactError, match="cannot be opened"):
        storage.resolve(uri)


def test_writing_where_nothing_can_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written"):
        storage.write_bytes(tmp_path / "file" / "below", b"x")
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_where_and_on_what_a_stage_ran_does_not_make_it_another_stage(tmp_path):
    open_stage(str(tmp_path / "a"), "thing", {"x": 1, "out": "here", "ray": {"num_cpus": 2}}).publish({})
    (tmp_path / "a").rename(tmp_path / "b")
    assert open_stage(str(tmp_path / "b"), "thing", {"x": 1, "out": "there", "ray": {}}).finished is not None


def test_a_taken_place_is_told_whatever_the_inputs_turn_out_to_be(tmp_path):
    check_place(tmp_path / "free", "doctor", {"a": 1})
    open_stage(tmp_path / "mine", "doctor", {"a": 1}, {"images": "x"}).publish({})
    check_place(tmp_path / "mine", "doctor", {"a": 1})
    for kind, config in (("doctor", {"a": 2}), ("study", {"a": 1})):
        with pytest.raises(ArtifactError, match="different run|of kind 'doctor'"):
            check_place(tmp_path / "mine", kind, config)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArtifactError, match="exists but is no artifact"):
        check_place(tmp_path / "folder", "doctor", {})
