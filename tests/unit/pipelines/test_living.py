"""From a folder to a gallery that changes while it is searched, by the command line."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_service

import cirray
from cirray.catalogue.table import Catalogue
from cirray.cli.main import main
from cirray.core.artifacts import read_manifest
from cirray.core.errors import ArtifactError, ConfigError, DataError, IndexMismatchError
from cirray.index.store import open_index
from cirray.pipelines.search.changes import run_add, run_compact, run_remove
from cirray.pipelines.search.living import run_gallery
from cirray.pipelines.search.living_config import AddRun, CompactRun, GalleryRun, RemoveRun
from cirray.search_engine import SearchEngine


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tiny_service.make(tmp_path_factory.mktemp("living"))


@pytest.fixture
def gallery(made, tmp_path):
    run_gallery(GalleryRun(index=made.index, checkpoint=made.checkpoint, out=str(tmp_path / "gallery")))
    return str(tmp_path / "gallery")


@pytest.fixture
def engine(made, gallery):
    return SearchEngine.open(made.checkpoint, gallery)


def answers(engine, **asked):
    ranking = engine.search(**asked)
    return list(zip(ranking.ids, ranking.scores, strict=True))


def test_a_gallery_answers_as_the_index_that_it_was_made_of(made, engine):
    frozen = SearchEngine.open(made.checkpoint, made.index)
    assert engine.gallery.ids == frozen.gallery.ids and len(engine.gallery) == 24
    asked = {"image": tiny_service.picture(3), "text": "turn it green", "k": 24}
    assert answers(engine, **asked) == answers(frozen, **asked)
    assert "plain/02" not in dict(answers(engine, gallery_id="plain/02", text="turn it green", k=24))
    for name in frozen.gallery.ids:
        assert engine.gallery.picture(name) == frozen.gallery.picture(name)
        row = frozen.gallery.row(name)
        assert engine.gallery.originals.find(row) == frozen.gallery.originals.find(row)
        assert engine.gallery.pictures.size(row) == frozen.gallery.pictures.size(row)


def test_a_folder_that_changed_is_added_by_its_differences_and_searched_as_a_new_index(made, engine, gallery, tmp_path):
    folder = tmp_path / "pictures"
    shutil.copytree(made.images, folder)
    done = run_add(AddRun(gallery=gallery, source=str(made.images)))
    assert done.counts == {"added": 0, "replaced": 0, "as before": 24, "removed": 0, "rejected": 1}
    (folder / "plain" / "02.png").write_bytes(tiny_service.picture(99))
    (folder / "new one.png").write_bytes(tiny_service.picture(98))
    (folder / "plain" / "04.png").unlink()
    done = run_add(AddRun(gallery=gallery, source=str(folder)))
    assert done.counts == {"added": 1, "replaced": 1, "as before": 22, "removed": 0, "rejected": 1}
    assert done.exit_status == 3 and "rejected plain/broken" in done.text()
    engine.follower.poll()
    assert len(engine.gallery) == 25 and "new one" in engine.gallery
    run_remove(RemoveRun(gallery=gallery, ids=("plain/04",)))
    engine.follower.poll()
    index = tiny_service.run_index(
        tiny_service.IndexRun(checkpoint=made.checkpoint, images=str(folder), out=str(tmp_path / "again"))
    )
    frozen = SearchEngine.open(made.checkpoint, str(tmp_path / "again"))
    assert index.counts["images"] == 24 and engine.gallery.ids == frozen.gallery.ids
    asked = {"image": tiny_service.picture(99), "text": "make it blue", "k": 24}
    assert [name for name, _ in answers(engine, **asked)] == [name for name, _ in answers(frozen, **asked)]


def test_what_is_gone_from_a_folder_goes_only_when_asked_and_only_below_that_folder(made, gallery, tmp_path):
    folder = tmp_path / "more"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(tiny_service.picture(50 + number))
    run_add(AddRun(gallery=gallery, source=str(folder), prefix="more/"))
    (folder / "1.png").unlink()
    assert run_add(AddRun(gallery=gallery, source=str(folder), prefix="more/")).counts["removed"] == 0
    done = run_add(AddRun(gallery=gallery, source=str(folder), prefix="more/", gone=True))
    assert done.counts["removed"] == 1 and done.counts["as before"] == 2
    ids = SearchEngine.open(made.checkpoint, gallery).gallery.ids
    assert len(ids) == 26 and "more/1" not in ids and "more/0" in ids


def test_vectors_and_metadata_come_from_a_parquet_file_and_a_filter_removes(made, tmp_path):
    place = str(tmp_path / "empty")
    columns = {"price": "number", "tags": "texts"}
    run = GalleryRun(index=None, checkpoint=made.checkpoint, columns=columns, out=place)
    assert run_gallery(run).counts == {"images": 0} and run_gallery(run).counts == {"images": 0}
    engine = SearchEngine.open(made.checkpoint, place)
    engine.probe()
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 3 * 8)).astype(np.float32)
    ids = [f"v{number:02d}" for number in range(40)]
    table = pa.table({"id": ids, "vector": list(vectors), "price": [float(n) for n in range(40)]})
    pq.write_table(table, tmp_path / "v.parquet")
    assert run_add(AddRun(gallery=place, source=str(tmp_path / "v.parquet"))).counts == {"added or replaced": 40}
    gallery = engine.follower.poll()
    assert gallery.ids == tuple(ids) and gallery.metadata["price"].to_pylist()[7] == 7.0
    assert run_remove(RemoveRun(gallery=place, where="price >= 10 and price < 39")).counts == {"removed": 29}
    assert engine.follower.poll().ids == (*ids[:10], "v39")
    assert run_compact(CompactRun(gallery=place, keep_s=0)).counts["outdated rows dropped"] == 58
    assert SearchEngine.open(made.checkpoint, place).gallery.ids == (*ids[:10], "v39")


@pytest.mark.parametrize(
    "columns, said",
    [
        ({"name": ["a"], "vector": [[1.0] * 24]}, "has the columns name, vector; id and vector are needed"),
        ({"id": ["a"], "vector": [[1.0] * 23]}, "holds lists of 23 numbers; lists of 24 numbers are needed"),
        ({"id": ["a", "b"], "vector": [[1.0] * 24, [1.0] * 48]}, "lists of 24 and 48 numbers; lists of 24"),
        ({"id": ["a"], "vector": pa.array([None], pa.list_(pa.float32()))}, "holds lists of no numbers"),
        ({"id": ["a"], "vector": [[None] * 24]}, "holds list<element: null>; lists of 24"),
        ({"id": ["a"], "vector": [[float("nan")] * 24]}, "vector of 'a' holds values that are not finite"),
        ({"id": ["a", None], "vector": [[1.0] * 24] * 2}, "column id of .* has gaps"),
        ({"id": [1], "vector": [[1.0] * 24]}, "column id of .* holds int64"),
        ({"id": ["a"], "vector": ["x"]}, "column vector of .* holds string"),
        ({"id": ["a"], "vector": [[1.0] * 24], "colour": [1]}, "column 'colour', and this gallery's metadata has none"),
    ],
)
def test_a_parquet_file_that_does_not_fit_is_refused_in_words(gallery, tmp_path, columns, said):
    pq.write_table(pa.table(columns), tmp_path / "v.parquet")
    with pytest.raises(DataError, match=said):
        run_add(AddRun(gallery=gallery, source=str(tmp_path / "v.parquet")))
    assert Catalogue.open(gallery).since(0).num_rows == 24


def test_index_writes_a_gallery_at_once_and_brings_it_up_to_date_with_its_folder(made, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, out = tmp_path / "pictures", str(tmp_path / "gallery")
    shutil.copytree(made.images, folder)
    (tmp_path / "m.csv").write_text("id,price\nplain/00,1.5\nplain/02,2.5\n")
    words = ["index", "--living", f"checkpoint={made.checkpoint}", f"images={folder}", f"root={tmp_path}"]
    assert main([*words, "metadata=m.csv"]) == 3  # one picture is broken
    assert read_manifest(out).counts == {"images": 24, "rejected": 1} and "gallery" in capsys.readouterr().out
    assert not (tmp_path / "gallery" / "tokens.npy").exists()
    engine, frozen = SearchEngine.open(made.checkpoint, out), SearchEngine.open(made.checkpoint, made.index)
    asked = {"image": tiny_service.picture(3), "text": "turn it green", "k": 24}
    assert answers(engine, **asked) == answers(frozen, **asked)
    gallery = engine.gallery
    assert gallery.picture("plain/02") == frozen.gallery.picture("plain/02")
    origin, content = gallery.originals.find(gallery.row("plain/02"))
    assert origin == folder / "plain" / "02.png"
    assert content == frozen.gallery.originals.find(frozen.gallery.row("plain/02"))[1]
    assert gallery.metadata["price"].to_pylist().count(None) == 22
    (folder / "plain" / "04.png").unlink()
    (folder / "plain" / "02.png").write_bytes(tiny_service.picture(99))
    (folder / "new.png").write_bytes(tiny_service.picture(98))
    (tmp_path / "m.csv").write_text("id,price,sold\nplain/00,7.5,true\nnew,3,false\n")
    assert main([*words, "metadata=m.csv"]) == 3
    assert "(1 added, 1 replaced, 22 as before, 1 removed, 1 rejected)" in capsys.readouterr().out
    gallery = engine.follower.poll()
    assert len(gallery) == 24 and "new" in gallery and "plain/04" not in gallery
    told = {
        name: gallery.metadata.slice(gallery.row(name), 1).to_pylist()[0] for name in ("plain/00", "plain/02", "new")
    }
    assert told["plain/00"] == {"price": 7.5, "sold": True} and told["new"] == {"price": 3.0, "sold": False}
    assert told["plain/02"] == {"price": 2.5, "sold": None}  # a picture that changed keeps what is known of it
    assert gallery.picture("plain/00") == frozen.gallery.picture("plain/00")
    version = gallery.version
    assert main([*words, "metadata=m.csv"]) == 3 and engine.follower.poll().version == version
    assert main(["search", f"root={tmp_path}", "--id", "new", "--text", "make it blue"]) == 0
    assert main(["index", "remove", out, "new"]) == 0 and len(engine.follower.poll()) == 23


def test_mistakes_are_said(made, gallery, tmp_path):
    with pytest.raises(DataError, match="no image 'nope'. It holds 24; nothing was removed"):
        run_remove(RemoveRun(gallery=gallery, ids=("plain/02", "nope")))
    with pytest.raises(ConfigError, match="Nothing to remove"):
        run_remove(RemoveRun(gallery=gallery))
    with pytest.raises(ConfigError, match="Nothing to add"):
        run_add(AddRun(gallery=gallery))
    with pytest.raises(DataError, match="does not exist"):
        run_add(AddRun(gallery=gallery, source=str(tmp_path / "no")))
    with pytest.raises(ArtifactError, match="of kind 'index'; 'gallery' is needed"):
        run_add(AddRun(gallery=made.index, source=str(made.images)))
    with pytest.raises(ArtifactError, match="of kind 'gallery'; 'index' is needed"):
        open_index(gallery)
    other = tiny_service.write_checkpoint(tmp_path / "other", seed=5)
    with pytest.raises(IndexMismatchError, match="was built by encoder"):
        SearchEngine.open(other, gallery)
    (tmp_path / "p.png").write_bytes(tiny_service.picture(1))
    with pytest.raises(IndexMismatchError):
        run_add(AddRun(gallery=gallery, source=str(tmp_path / "p.png"), checkpoint=other))


def test_the_command_line_makes_changes_and_searches_the_last_gallery(made, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root, place = f"--root={tmp_path}", str(tmp_path / "gallery")
    assert main(["gallery", f"index={made.index}", f"checkpoint={made.checkpoint}", root]) == 0
    (tmp_path / "one.png").write_bytes(tiny_service.picture(77))
    assert main(["index", "add", place, "one.png", "--prefix", "x/"]) == 0
    assert "1 added" in capsys.readouterr().out
    assert main(["search", root, "--id", "x/one", "--text", "make it blue"]) == 0
    assert main(["index", "remove", place, "x/one", "plain/02"]) == 0
    assert "2 removed" in capsys.readouterr().out
    assert main(["index", "compact", place, "--keep-s", "0"]) == 0
    assert main(["search", root, "--id", "x/one", "--text", "make it blue"]) == 2
    assert "no image 'x/one'. It holds 23" in capsys.readouterr().err
    assert read_manifest(place).counts == {"images": 24}
    found = cirray.load(place)
    assert len(found) == 23 and Path(found.search("plain/04", "make it blue")[0].path).is_file()
    Catalogue.open(place).write([])
    assert main(["index", "add", place, str(made.images)]) == 3
    assert len(found.search("plain/02", "make it blue", k=24)) == 23 and len(found) == 24
