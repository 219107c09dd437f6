"""What an index says can be asked of it: the data set's own texts, and queries whose first answer is right."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from cirray.catalogue.change import Change
from cirray.catalogue.opening import open_gallery
from cirray.catalogue.table import Catalogue
from cirray.data.config import DataConfig, FolderConfig
from cirray.index.store import open_index
from cirray.index.texts import MAX_TEXTS, texts_by_reference
from cirray.models.text_processors import process
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.search.index import run_index
from cirray.pipelines.search.living import run_gallery
from cirray.pipelines.search.living_config import GalleryRun
from cirray.pipelines.search.texts import convincing, own_texts
from cirray.search_engine import SearchEngine
from cirray.types import Query

TINY = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "tiny_service.py")))
TEXT = "make it blue"


def test_a_text_that_is_empty_to_the_encoder_is_not_offered():
    reader = SimpleNamespace(processed=lambda texts: [*process("blip_caption", texts)])
    asked = (Query("a", "x", "...!", ("y",)), Query("b", "x", TEXT, ("y",)), Query("c", "x", " ", ("y",)))
    assert own_texts(SimpleNamespace(queries=asked, triplets=()), ["x"], reader) == {"x": (TEXT,)}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return TINY.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def retriever(tiny):
    return SearchEngine.open(tiny.checkpoint, tiny.index)


def answers(retriever, name, text=TEXT):
    return retriever.search(text, gallery_id=name, k=2)


def indexed(tiny, features, folder, queries, **fields):
    """The index of a data set with those queries: (reference, target, text)."""
    rows = [{"reference": a, "target": b, "modification": text} for a, b, text in queries]
    (folder / "queries.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    data = DataConfig(folder=FolderConfig(root=str(folder)))
    settings = {
        "checkpoint": tiny.checkpoint,
        "features": (features,),
        "data": data,
        "out": str(folder.parent / "index"),
    }
    run_index(IndexRun(**{**settings, **fields}))
    return open_index(settings["out"])


def dataset_of(tiny, tmp_path):
    folder = TINY.write_pictures(tmp_path / "set", broken=False)
    return folder, TINY.write_features(tmp_path / "features", folder, tiny.checkpoint)


def test_an_index_keeps_the_texts_of_each_reference_and_the_queries_it_answers_rightly(tiny, retriever, tmp_path):
    folder, features = dataset_of(tiny, tmp_path)
    right, wrong = "plain/00", "plain/02"
    best = answers(retriever, right).ids[0]
    second = answers(retriever, wrong).ids[1]
    gallery = indexed(
        tiny, features, folder, [(right, best, f"  {TEXT}"), (wrong, second, TEXT), (right, best, "add a star")]
    )
    assert gallery.texts == {right: (TEXT, "add a star"), wrong: (TEXT,)}
    assert gallery.examples == ((right, TEXT),)


def test_a_gallery_that_is_written_to_keeps_them_and_forgets_the_examples_of_images_that_are_gone(
    tiny, retriever, tmp_path
):
    folder, features = dataset_of(tiny, tmp_path)
    best = answers(retriever, "plain/00").ids[0]
    asked = [("plain/00", best, TEXT), ("plain/02", best, "add a star")]
    index = indexed(tiny, features, folder, asked)
    copied, at_once = str(tmp_path / "copied"), str(tmp_path / "living")
    run_gallery(GalleryRun(index=str(tmp_path / "index"), checkpoint=tiny.checkpoint, out=copied))
    data = DataConfig(folder=FolderConfig(root=str(folder)))
    run_index(IndexRun(checkpoint=tiny.checkpoint, features=(features,), data=data, living=True, out=at_once))
    for place in (copied, at_once):
        follower = open_gallery(place, None)
        assert follower.gallery.texts == index.texts and follower.gallery.examples == index.examples != ()
        assert follower.gallery.texts_of("plain/02") == ("add a star",)
        Catalogue.open(place).write([Change("plain/00")])
        assert follower.poll().examples == ()


def test_a_folder_of_pictures_has_no_texts_and_none_are_made_up(tiny):
    gallery = open_index(tiny.index)
    assert gallery.texts == {} and gallery.examples == () and not (Path(tiny.index) / "texts.json").exists()


def test_texts_that_no_search_takes_are_left_out_and_not_fatal(tiny, retriever, tmp_path):
    folder, features = dataset_of(tiny, tmp_path)
    target = answers(retriever, "plain/00").ids[0]
    gallery = indexed(tiny, features, folder, [("plain/00", target, "long " * 200), ("plain/02", target, TEXT)])
    assert gallery.texts == {"plain/02": (TEXT,)}


def test_the_clearest_answers_come_first_one_of_each_reference(retriever):
    names = retriever.gallery.ids[:8]
    found = {name: answers(retriever, name) for name in names}
    queries = [Query(f"q{name}", name, TEXT, (found[name].ids[0],)) for name in names]
    again = [Query(f"r{name}", name, "add a star", (found[name].ids[0],)) for name in names]
    leads = sorted(names, key=lambda name: found[name].scores[1] - found[name].scores[0])
    assert convincing(retriever, [*queries, *again], 5) == [(name, TEXT) for name in leads[:5]]
    wrong = [Query(f"q{name}", name, TEXT, (found[name].ids[1],)) for name in names]
    assert convincing(retriever, wrong) == []


def test_no_picture_gets_more_texts_than_a_page_can_show():
    asked = [("a", f"text {number % 20}") for number in range(40)] + [("elsewhere", "text")]
    assert texts_by_reference(asked, ["a", "b"]) == {"a": tuple(f"text {number}" for number in range(MAX_TEXTS))}
