import json
from typing import Annotated

import pytest
from made_artifacts import stage_of

from cirray.core import artifacts, storage
from cirray.core.artifacts import check_place, localize, read_manifest
from cirray.core.config import Config
from cirray.core.contents import file_digest
from cirray.core.errors import ArtifactError
from cirray.core.fields import Effort, Kind, Place
from cirray.core.unfinished import restarting, stage_function
from cirray.data.config import DataConfig


def write(stage, name="data.txt", text="hello"):
    storage.write_bytes(storage.join(stage.work_uri, name), text.encode())


def test_an_artifact_is_invisible_until_it_is_published(tmp_path):
    out = str(tmp_path / "a")
    stage = stage_of(out, "thing", {"x": 1})
    write(stage)
    with pytest.raises(ArtifactError, match="half-written"):
        read_manifest(out)
    manifest = stage.publish({"rows": 1}, {"score": 0.5})
    assert read_manifest(out, "thing") == manifest
    assert (localize(out) / "data.txt").read_text() == "hello"


def test_a_finished_stage_is_recognised_and_a_changed_config_is_refused(tmp_path):
    out = str(tmp_path / "a")
    stage_of(out, "thing", {"x": {"y": 1}}).publish({})
    assert stage_of(out, "thing", {"x": {"y": 1}}).finished is not None
    with pytest.raises(ArtifactError, match=r"\(settings\.x\.y: 1 there, 2 now"):
        stage_of(out, "thing", {"x": {"y": 2}})


def test_a_killed_stage_resumes_with_its_shards_and_refuses_another_config(tmp_path):
    out = str(tmp_path / "a")
    write(stage_of(out, "thing", {"x": 1}, kept=["shard-*"]), "shard-0")
    resumed = stage_of(out, "thing", {"x": 1}, kept=["shard-*"])
    assert "shard-0" in storage.list_files(resumed.work_uri)
    for kept in (["shard-*"], []):  # another kind of stage does not make the shards worthless
        with pytest.raises(ArtifactError, match=r"half-written by a different run .*x: 1 there, 2 now.*Add --restart"):
            stage_of(out, "thing", {"x": 2}, kept=kept)
    assert "shard-0" in storage.list_files(resumed.work_uri)


def test_what_a_writer_that_was_killed_left_half_written_is_not_published(tmp_path, monkeypatch):
    whole = stage_of(str(tmp_path / "whole"), "thing", {"x": 1})
    resumed = stage_of(str(tmp_path / "a"), "thing", {"x": 1}, kept=["data/*"])
    for stage in (whole, resumed):
        storage.write_bytes(storage.join(stage.work_uri, "data", "part-1.parquet"), b"rows")
    monkeypatch.setattr(storage.os, "replace", lambda *names: (_ for _ in ()).throw(SystemExit))
    monkeypatch.setattr(storage.Path, "unlink", lambda *names, **named: None)  # killed: nothing is cleaned up
    with pytest.raises(SystemExit):
        storage.write_bytes(storage.join(resumed.work_uri, "data", "part-2.parquet"), b"half")
    monkeypatch.undo()
    assert len(storage.list_files(resumed.work_uri)) == len(storage.list_files(whole.work_uri)) + 1
    assert resumed.publish({}).digest == whole.publish({}).digest
    assert sorted(storage.list_files(str(tmp_path / "a"))) == sorted(storage.list_files(str(tmp_path / "whole")))


def test_half_written_work_that_nobody_would_go_on_from_stands_in_no_one_s_way(tmp_path):
    out = str(tmp_path / "a")
    write(stage_of(out, "thing", {"x": 1}, kept=["shard-*"]), "copied-input")
    other = stage_of(out, "thing", {"x": 2}, kept=["shard-*"])
    assert other.fresh and storage.list_files(other.work_uri) == ["stage.json"]


def test_a_damaged_marker_is_named_where_work_would_be_lost_and_replaced_where_none_would(tmp_path):
    stage = stage_of(str(tmp_path / "a"), "thing", {"x": 1}, kept=["shard-*"])
    (tmp_path / "a.partial" / "stage.json").write_text("{")
    assert stage_of(stage.uri, "thing", {"x": 1}, kept=["shard-*"]).fresh
    write(stage, "shard-0")
    (tmp_path / "a.partial" / "stage.json").write_text("[1]")
    with pytest.raises(ArtifactError, match="half-written .*description is damaged"):
        stage_of(stage.uri, "thing", {"x": 1}, kept=["shard-*"])


def test_restarting_throws_half_written_work_away_and_no_finished_artifact(tmp_path):
    half, whole = str(tmp_path / "half"), str(tmp_path / "whole")
    write(stage_of(half, "thing", {"x": 1}, kept=["*"]), "shard-0")
    stage_of(whole, "thing", {"x": 1}).publish({})
    with restarting():
        assert storage.list_files(stage_of(half, "thing", {"x": 2}, kept=["*"]).work_uri) == ["stage.json"]
        write(stage_of(half, "thing", {"x": 2}, kept=["*"]), "shard-1")
        assert stage_of(half, "thing", {"x": 2}, kept=["*"]).fresh
        assert stage_of(whole, "thing", {"x": 1}).finished is not None
        with pytest.raises(ArtifactError, match="was made by a different run"):
            stage_of(whole, "thing", {"x": 2})
    assert read_manifest(whole).kind == "thing"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("name, left", [("copied-input", False), ("shard-0", True)])
def test_a_stage_that_fails_leaves_only_what_the_next_start_goes_on_from(tmp_path, error, name, left):
    @stage_function
    def run(out):
        """A stage."""
        write(stage_of(out, "thing", {}, kept=["shard-*"]), name)
        raise error

    with pytest.raises(error):
        run(str(tmp_path / "a"))
    assert [item.name for item in tmp_path.iterdir()] == (["a.partial"] if left else [])
    assert run.__name__ == "run" and run.__doc__ == "A stage."


def test_a_place_with_a_slash_at_its_end_is_the_same_place(tmp_path):
    stage_of(f"{tmp_path}/a/", "thing", {}).publish({})
    assert [item.name for item in tmp_path.iterdir()] == ["a"] and read_manifest(tmp_path / "a").kind == "thing"


@pytest.mark.parametrize("field, value", [("counts", [1]), ("extra", None), ("kind", 3), ("schema_version", "1")])
def test_a_manifest_with_a_field_of_another_type_is_damaged_and_the_field_is_named(tmp_path, field, value):
    stage_of(str(tmp_path / "a"), "thing", {}).publish({})
    path = tmp_path / "a" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ArtifactError, match=f"manifest of .* is damaged: {field} holds a "):
        read_manifest(str(tmp_path / "a"))


def test_a_folder_that_is_no_artifact_is_not_overwritten(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "precious.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="no artifact"):
        stage_of(str(tmp_path / "a"), "thing", {})
    assert (tmp_path / "a" / "precious.txt").exists()


def test_the_wrong_kind_a_missing_one_and_a_damaged_manifest_are_named(tmp_path):
    out = str(tmp_path / "a")
    stage_of(out, "thing", {}).publish({})
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
    stage_of(str(out), "thing", {}).publish({})
    fields = json.loads((out / "manifest.json").read_text()) | {"schema_version": 99}
    (out / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(ArtifactError, match="99"):
        read_manifest(str(out))


def test_the_digest_depends_on_content_and_name_only(tmp_path):
    digests = []
    for name, text in (("a", "x"), ("b", "x"), ("c", "y")):
        stage = stage_of(str(tmp_path / name), "thing", {})
        write(stage, text=text)
        digests.append(stage.publish({}).digest)
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("at", [0, 41, 99])
def test_any_byte_of_a_large_file_counts(tmp_path, monkeypatch, at):
    monkeypatch.setattr("cirray.core.written.BLOCK_BYTES", 16)
    path, content = tmp_path / "big", bytearray(b"a" * 100)
    path.write_bytes(content)
    before = file_digest(path)
    assert file_digest(path) == before
    content[at] = ord("b")
    path.write_bytes(content)
    assert file_digest(path) != before


def test_a_store_that_only_fsspec_knows_holds_an_artifact_too(tmp_path, monkeypatch):
    """`memory://` stands for `az://` and its like; what lies here is digested here, and not read back from there."""
    monkeypatch.setenv("CIRRAY_CACHE", str(tmp_path / "cache"))
    stage = stage_of("memory://store/thing", "thing", {})
    for number in range(20):
        (stage.local / f"part-{number}").write_bytes(bytes([number]) * 10)
    read = []
    monkeypatch.setattr(storage, "read_bytes", lambda uri, old=storage.read_bytes: read.append(uri) or old(uri))
    digest = stage.publish({}).digest
    assert read == []
    assert localize("memory://store/thing").joinpath("part-7").read_bytes() == b"\x07" * 10
    assert digest == read_manifest("memory://store/thing").digest == artifacts.directory_digest("memory://store/thing")


def test_a_file_that_cannot_be_copied_is_named_and_leaves_nothing_half(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_text("a")
    monkeypatch.setattr(storage, "list_files", lambda uri: ["a", "b"])
    with pytest.raises(ArtifactError, match=r"source/b' cannot be copied to '.*target.*/b': "):
        storage.download_folder(source, tmp_path / "target")
    assert [item.name for item in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("uri", ["nosuch://bucket/x", "s3:///"])
def test_a_bad_uri_is_one_sentence(uri):
    with pytest.raises(ArtifactError, match="cannot be opened"):
        storage.resolve(uri)


def test_writing_where_nothing_can_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written"):
        storage.write_bytes(tmp_path / "file" / "below", b"x")
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


class PlacedRun(Config):
    """A run that reads a place and takes some effort."""

    x: int = 1
    source: Place = ""
    workers: Effort[int] = 1
    out: Place


def test_where_and_on_what_a_stage_ran_does_not_make_it_another_stage(tmp_path):
    artifacts.open_stage(PlacedRun(out=str(tmp_path / "a")), "thing").publish({})
    (tmp_path / "a").rename(tmp_path / "b")
    again = artifacts.open_stage(PlacedRun(workers=2, out=str(tmp_path / "b")), "thing").finished
    assert again is not None and again.config["workers"] == 1 and again.identity == {"x": 1}


def test_a_place_is_known_by_what_lies_there_and_not_by_its_name(tmp_path):
    for name, text in (("here", "same"), ("moved", "same"), ("other", "more")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.txt").write_text(text)
    open_with = {
        name: PlacedRun(source=str(tmp_path / name), out=str(tmp_path / "a")) for name in ("here", "moved", "other")
    }
    artifacts.open_stage(open_with["here"], "thing").publish({})
    assert artifacts.open_stage(open_with["moved"], "thing").finished is not None
    for run in (
        open_with["other"],
        PlacedRun(out=str(tmp_path / "a")),
        PlacedRun(source="a-hub/name", out=str(tmp_path / "a")),
    ):
        with pytest.raises(ArtifactError, match=r"different run \(inputs.source: '.*' there, (nothing|'.*') now"):
            artifacts.open_stage(run, "thing")


def test_what_stands_for_a_place_is_its_artifact_folder_file_or_name(tmp_path):
    stage = stage_of(tmp_path / "a", "thing")
    write(stage, text="x")
    assert artifacts.place_digest(str(tmp_path / "a")) == str(tmp_path / "a")
    digest = stage.publish({}).digest
    assert artifacts.place_digest(str(tmp_path / "a")) == digest
    (tmp_path / "a" / "manifest.json").unlink()
    assert artifacts.place_digest(str(tmp_path / "a")) == digest
    file = tmp_path / "a" / "data.txt"
    assert artifacts.place_digest(str(file)) == file_digest(str(file))
    assert artifacts.place_digest(f"arch={file}") == f"arch={file_digest(str(file))}"
    assert artifacts.place_digest("a-hub/name") == "a-hub/name"


def test_a_place_of_a_declared_kind_must_be_a_complete_artifact_of_it(tmp_path):
    class ReadingRun(Config):
        """Reads pairs."""

        pairs: Annotated[Place, Kind("pairs")]
        out: Place

    run = ReadingRun(pairs=str(tmp_path / "read"), out=str(tmp_path / "out"))
    with pytest.raises(ArtifactError, match="of kind 'pairs'.*does not exist"):
        artifacts.open_stage(run, "thing")
    stage_of(tmp_path / "read", "features").publish({})
    with pytest.raises(ArtifactError, match="of kind 'features'; 'pairs' is needed"):
        artifacts.open_stage(run, "thing")
    made = stage_of(tmp_path / "pairs", "pairs").publish({})
    run = run.model_copy(update={"pairs": str(tmp_path / "pairs")})
    assert artifacts.open_stage(run, "thing").inputs == {"pairs": made.digest}


def test_a_stage_that_says_nothing_of_a_data_set_is_a_fault_of_its_code(tmp_path):
    class DataRun(Config):
        data: DataConfig = DataConfig()
        out: Place

    run = DataRun(out=str(tmp_path / "a"))
    with pytest.raises(TypeError, match="gives no digest of what it reads in 'data'"):
        artifacts.open_stage(run, "thing")
    assert artifacts.open_stage(run, "thing", {"data": ""}).fresh


def test_more_than_three_differing_fields_are_counted(tmp_path):
    stage_of(tmp_path / "a", "thing", dict.fromkeys("abcde", 1)).publish({})
    with pytest.raises(ArtifactError, match=r"a: 1 there, 2 now; settings.b: 1 there, 2 now; .*; and 2 more"):
        stage_of(tmp_path / "a", "thing", dict.fromkeys("abcde", 2))


@pytest.mark.parametrize("version", [1, None])
def test_an_artifact_of_an_earlier_version_is_one_sentence_wherever_it_is_read(tmp_path, version):
    out, half = tmp_path / "a", tmp_path / "half"
    stage_of(out, "thing").publish({})
    write(stage_of(half, "thing", kept=["shard-*"]), "shard-0")
    for path in (out / "manifest.json", tmp_path / "half.partial" / "stage.json"):
        fields = json.loads(path.read_text()) | {"schema_version": version}
        fields = {name: value for name, value in fields.items() if value is not None and name != "identity"}
        path.write_text(json.dumps(fields))
    for read in (read_manifest, localize, lambda uri: stage_of(uri, "thing"), artifacts.place_digest):
        with pytest.raises(ArtifactError, match="was made by an earlier, incompatible version; run its stage again"):
            read(str(out))
    with pytest.raises(ArtifactError, match="half-written by an earlier, incompatible version. Add --restart"):
        stage_of(half, "thing", kept=["shard-*"])
    with restarting():
        assert stage_of(half, "thing", kept=["shard-*"]).fresh


def test_a_taken_place_is_told_whatever_the_inputs_turn_out_to_be(tmp_path):
    def run(name, x=1):
        return PlacedRun(x=x, out=str(tmp_path / name))

    check_place(run("free"), "doctor")
    artifacts.open_stage(run("mine"), "doctor", {"images": "x"}).publish({})
    check_place(run("mine"), "doctor")
    for kind, x in (("doctor", 2), ("study", 1)):
        with pytest.raises(ArtifactError, match="different run|of kind 'doctor'"):
            check_place(run("mine", x), kind)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArtifactError, match="exists but is no artifact"):
        check_place(run("folder"), "doctor")
